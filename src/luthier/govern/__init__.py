"""Who may be told what: the gate, licenses, the model card and the lineage. Reads records, never tensors."""
