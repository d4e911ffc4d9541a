"""One file per task. A task is a LightningModule: encoder, one linear head, loss, metrics."""
