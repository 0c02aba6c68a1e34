"""What the methods and the runtime that go through transformers share: loading, quantizing on the fly,
keeping quiet."""
