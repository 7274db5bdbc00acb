"""One run over several processes: who they are (world), how they share a model (ddp, fsdp), how they start (launch)."""
