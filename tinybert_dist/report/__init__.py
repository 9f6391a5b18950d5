"""The report card: what a student keeps of its teacher, and what it costs. Numbers, Markdown, one picture."""
