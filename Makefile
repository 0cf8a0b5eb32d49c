# The comparison with other libraries, in an environment of its own.
#
# The peers come without their dependencies: torchattacks pins an old `requests` and
# wants torchvision, adv-lib wants torchvision and visdom (a source package that recent
# setuptools cannot build), and no attack that is compared uses any of them.
# TORCH_INDEX is the address of an index with the CPU build of PyTorch; without it pip
# takes its default, which on some platforms brings the GPU build.
PARITY ?= .venv-parity
PYTHON ?= python3
TORCH_INDEX ?=
PEERS := foolbox==3.3.4 torchattacks==3.5.1 adversarial-robustness-toolbox==1.20.1 \
         adv-lib==0.2.8

.PHONY: parity
parity: $(PARITY)/installed
	$(PARITY)/bin/python -m pytest tests/parity

$(PARITY)/installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/pip install torch==2.13.0 $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(PARITY)/bin/pip install -e ".[test]" eagerpy requests scipy six setuptools
	$(PARITY)/bin/pip install --no-deps $(PEERS)
	touch $@
