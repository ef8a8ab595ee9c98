"""What a run folder says in JSON, a file per record: its schema, its versions, how it is written and read."""
