"""The rows of the contract tests, one file per module of the package."""
