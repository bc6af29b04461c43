"""What runs the cases: correctness first, then interleaved timing, memory, floors, strict JSON and the report."""
