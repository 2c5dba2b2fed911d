"""Run folders: their files, checkpoints of ours and of the original program, and models to share."""
