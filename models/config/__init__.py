"""Reading Hugging Face configurations strictly."""
