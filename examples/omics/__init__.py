"""Classes of samples from several kinds of omics: asymmetric branches, class subspaces, missing branches.

Commands, run from the root of the repository; ``--help`` lists all options::

    python -m examples.omics fit --config asymmetric.yaml --config data/rosmap.yaml --data.root DATA/rosmap/rosmap.npz
    python -m examples.omics evaluate runs/omics/asymmetric-rosmap/rosmap/seed0-fold0/best.ckpt
    python -m examples.omics evaluate best.ckpt --test other.npz --unknown
    python -m examples.omics plot best.ckpt --method tsne
    python -m examples.omics ablate --data rosmap --data.root DATA/rosmap/rosmap.npz --out runs/rosmap --seeds 10
    python -m examples.omics ablate --data pollen --data.root DATA/scrna_simlr/pollen.npz --out runs/pollen \\
        --configs plain asymmetric asymmetric+no_bank --seeds 10 --folds 0 1 2 3 4 --by-seed --leave-out all

Methods are in ``configs/``, what may be put after them in ``configs/variants/``, data sets in ``configs/data/``.
Data of your own need a file of ten lines like those: which branches there are, where the labels are, how rows are
split. A branch is an array of a ``.npz``, a ``.csv`` of samples x features, or a part of an ``.h5ad``. Samples are
matched by id; one that a file lacks is absent in that branch, which the network never reads then.

Everything that is fitted, such as the selection and scaling of features, sees training rows alone; everything that is
chosen, such as the epoch, is chosen on validation rows; test rows are read once, at the end.
"""
