"""What a person looks at: figures, the report, the widgets. They read and show."""
