# Does it teach? One seed of four arms in the controlled world (examples/arithmetic), with a page; all of it: `make teaches-all`.
.PHONY: teaches teaches-all

teaches: $(ANY)  ## SFT as it came, SFT on rewrites, DPO and CogPO in a controlled world, one seed: runs/teaches-one
	@JAX_PLATFORMS=cpu $(PY) benchmarks/teaches.py --workdir=runs/teaches-one --seeds=1 --arms=asis,rewrites,dpo_0.1,cogpo

teaches-all: $(ANY)  ## five seeds of all arms (hours; resumable): runs/teaches
	@JAX_PLATFORMS=cpu $(PY) benchmarks/teaches.py --workdir=runs/teaches
