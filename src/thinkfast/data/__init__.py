"""What a model is asked and what it learns from: problems, the procedural task, its tokenizer, pools, batches."""
