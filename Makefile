# The verbs of the project; `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
# uv from PATH, else one installed beside the project: nothing outside this folder is touched.
UV := $(shell command -v uv || echo .uv/bin/uv)
RUN := $(UV) run --locked --all-extras --no-progress
# Where this is set every process would compile torch and transformers anew: 10 s each.
unexport PYTHONDONTWRITEBYTECODE
SEED ?= 0
SERVE := $(HOME)/.cache/mmar-jobs/serve
DEMO := demo/seed-$(SEED)
CLUSTER_DEMO := demo/cluster
TOOLS := $(HOME)/.cache/mmar-jobs/deploy/bin
CHARTUTIL := helm.sh/helm/v3/pkg/chartutil

comma := ,
space := $(subst ,, )
PURE := $(subst $(space),$(comma),$(patsubst %,mmar_jobs/%.py,records prompt grade zone stats \
	verdict score submission manifest identity split layout rewards group drawn_tokens))

.PHONY: help setup demo demo-grpo test test-slow test-serve deploy-tools test-deploy lint-deploy test-cluster \
	cluster-demo images charts check coverage goldens clean

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

.uv/bin/uv:
	@python3 -m pip --version >/dev/null 2>&1 || { apt-get update -qq && \
		apt-get install -y -qq python3-pip; } || { echo "install pip for python3 first"; exit 1; }
	@python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore \
		--target .uv uv

setup: $(UV) ## install everything the other verbs need, pinned by uv.lock
	@$(UV) sync --locked --all-extras --quiet

demo-grpo: DEMO := demo/grpo-$(SEED)
demo-grpo: OBJECTIVE := --objective grpo --iterations 1
demo-grpo: demo ## one round of it by a policy gradient (SEED=0)

demo: setup ## run the main job on this machine: tiny model, synthetic benchmark (SEED=0)
	@$(RUN) mmar-jobs tiny world $(DEMO)/world --seed $(SEED) >/dev/null
	@$(RUN) mmar-jobs run --config mmar_jobs/tiny/demo.toml --run-id demo-$(SEED) \
		--store $(DEMO)/store --model mmar_jobs/tiny/weights --output $(DEMO) \
		--questions $(DEMO)/world/train.jsonl --heldout $(DEMO)/world/heldout.jsonl \
		--benchmark $(DEMO)/world/benchmark.jsonl \
		--sampling.seed $(SEED) --optim.seed $(SEED) $(OBJECTIVE)
	@$(RUN) mmar-jobs validate $(DEMO)/submission.zip --meta $(DEMO)/world/benchmark.jsonl
	@$(RUN) mmar-jobs score $(DEMO)/submission.zip --meta $(DEMO)/world/benchmark.jsonl

test: setup ## the tests, about 10 minutes on 2 cores
	@OMP_NUM_THREADS=1 $(RUN) pytest -n 2 --dist worksteal -m "not slow"

test-slow: setup ## the long tests: another demo seed, twenty kills, a million candidates
	@OMP_NUM_THREADS=1 $(RUN) pytest -n 2 --dist worksteal -m "slow and not alone" --timeout 1800
	@$(RUN) pytest -m alone --timeout 1800

test-serve: setup ## the real vLLM on the CPU, in an environment of its own in ~/.cache (6 GB)
	@UV_PROJECT_ENVIRONMENT=$(SERVE) $(UV) sync --project tests/serve/environment --locked \
		--no-progress --quiet
	@VLLM_ENVIRONMENT=$(SERVE) $(RUN) pytest tests/serve -p no:randomly --timeout 900 --durations 0

deploy-tools: ## pinned Helm, its unit tests, actionlint in ~/.cache (needs Go; 1 GB of its cache)
	@mkdir -p $(TOOLS)
	@test -x $(TOOLS)/helm || GOBIN=$(TOOLS) timeout 1200 go install -ldflags \
		"-X $(CHARTUTIL).k8sVersionMajor=1 -X $(CHARTUTIL).k8sVersionMinor=34" \
		helm.sh/helm/v3/cmd/helm@v3.22.0
	@test -x $(TOOLS)/helm-unittest || { cd tests/deploy/unittest && \
		CGO_ENABLED=0 timeout 1200 go build -trimpath -o $(TOOLS)/ tool; }
	@test -x $(TOOLS)/actionlint || GOBIN=$(TOOLS) timeout 600 go install \
		github.com/rhysd/actionlint/cmd/actionlint@v1.7.12

test-deploy: setup deploy-tools ## charts, workflows, manifests, images: schemas, and each other
	@OMP_NUM_THREADS=1 $(RUN) pytest -q tests/deploy -m "not slow"

lint-deploy: setup deploy-tools ## Checkov over what charts render and k8s/, actionlint and zizmor over .github/
	@$(UV) tool run --quiet --from checkov==3.3.30 checkov --config-file tests/deploy/checkov.yaml
	@$(RUN) $(TOOLS)/actionlint
	@$(UV) tool run --quiet --from zizmor==1.32.0 zizmor --offline --quiet .github/workflows

images: setup ## build the three images with buildah, podman or docker
	@for image in cpu train serve; do images/build $$image || exit; done

charts: setup ## renew what charts carry: Jobs, workflows, vLLM's options, READMEs
	@$(RUN) python -m charts.package

test-cluster: setup deploy-tools ## a real Kubernetes in namespaces of its own (root; 10 minutes of Go at first)
	@tests/cluster/real/install
	@tests/cluster/real/enter $(UV) run --no-sync --offline pytest -q tests/cluster/real \
		-p no:randomly --allow-hosts=127.0.0.1,10.222.0.1 --timeout 900 --durations 10

cluster-demo: setup ## the whole job on a real Kubernetes of this machine, tiny model (root)
	@tests/cluster/real/install
	@tests/cluster/real/enter $(UV) run --no-sync --offline python -m tests.cluster.real.demo $(CLUSTER_DEMO)
	@$(RUN) mmar-jobs validate $(CLUSTER_DEMO)/submission.zip --meta $(CLUSTER_DEMO)/world/benchmark.jsonl
	@$(RUN) mmar-jobs score $(CLUSTER_DEMO)/submission.zip --meta $(CLUSTER_DEMO)/world/benchmark.jsonl

check: setup ## locks, formatting, lint, types
	@for place in . images/serve tests/serve/environment; do \
		$(UV) lock --check --quiet --project $$place || exit; done
	@$(RUN) ruff format --check .
	@$(RUN) ruff check .
	@$(RUN) mypy

coverage: setup ## the pure modules are covered to the last branch
	@OMP_NUM_THREADS=1 $(RUN) pytest -q -n 2 -m "not slow" --cov=mmar_jobs --cov-report= \
		tests/test_records.py tests/test_prompt.py tests/test_grade.py tests/test_zone.py \
		tests/test_stats.py tests/test_verdict.py tests/test_score.py tests/test_submission.py \
		tests/test_manifest.py tests/test_identity.py tests/test_split.py tests/test_layout.py \
		tests/test_rewards.py tests/test_group.py tests/test_drawn_tokens.py \
		--deselect tests/test_grade.py::test_grading_is_fast_enough_for_a_million_candidates
	@$(RUN) coverage report --fail-under=100 --include="$(PURE)"

goldens: setup ## write the golden files anew, to be read in the diff (refuses in CI)
	@$(RUN) python tests/goldens.py --write

clean: ## remove the environment and the demo
	rm -rf .venv .uv demo
