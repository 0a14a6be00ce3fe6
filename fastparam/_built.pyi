version: str
torch: str
cuda: str | None
architectures: str | None
