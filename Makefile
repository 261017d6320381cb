# Everything runs in .venv, which is made on demand. PYTHON chooses the interpreter it is made with.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PROMPT ?= a fox in a forest at sunset
FIGURES_PACKAGE := @lobehub/fluent-emoji-3d@1.1.0
FIGURES := runs/fluent-emoji-3d/package/assets
SCENES := runs/scenes
STUDENTS := runs/students
PICTURES ?= 24000
COUNT ?= 5000
NEW ?= 512
TIME := $(if $(MINUTES),--minutes $(MINUTES))
STUDENT := $(RUN) -m swd_core.lab.train_student --scenes $(SCENES) --run $(STUDENTS)
PAIRED := --pairs $(STUDENTS) --first 0.2 --gan 0 --fake-steps 1 --ema 0.98 --lr 3e-4 \
	--backward-simulation 0.6
SHARPER := $(PAIRED) --mmd 0.15 --pairs-weight 0.6
BETWEEN := $(RUN) -m swd_core.lab.between

# A real ComfyUI, where there is one; its own interpreter runs the host tests if it has pytest.
COMFYUI := $(or $(COMFYUI_PATH),$(HOME)/comfy/ComfyUI)
HOST_PYTHONS := $(wildcard $(COMFYUI_PYTHON) $(patsubst %,%/bin/python,\
	$(dir $(COMFYUI))venv$(patsubst ComfyUI%,%,$(notdir $(COMFYUI))) $(COMFYUI)/venv $(COMFYUI)/.venv))
HOST_PYTHON := $(if $(wildcard $(COMFYUI)/comfy/samplers.py),$(firstword $(foreach p,$(HOST_PYTHONS),\
	$(if $(shell $(p) -c "import pytest, websocket" 2>/dev/null && echo yes),$(p)))))

CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)

# Benchmarks by what they need; each writes its section of benchmarks/RESULTS.md.
HOST_BENCHES := sampler true-size host-nodes drafts startup
BENCHES := $(HOST_BENCHES) scenes distill

.PHONY: help demo test test-browser lint node locales graphs ablation
.PHONY: data train-autoencoder train-classifier latents train-teacher train-student train-decoder
.PHONY: pictures editor-pictures
.PHONY: evaluate faithfulness prompts-alone eta bench $(BENCHES:%=bench-%)

help:
	@echo "make demo               a picture from the embedded student, scale by scale (PROMPT=\"$(PROMPT)\")"
	@echo "make test               all tests; those that need a ComfyUI say so if there is none"
	@echo "make test-browser       the contact sheet clicked in a real browser, where there is a Chromium"
	@echo "make lint               ruff, and vulture: code that nothing reaches"
	@echo "make node               begins a node: NAME=SwDThing DOES=\"what it does, in a line\""
	@echo "make locales            what the host serves, from the translations of each node"
	@echo "make graphs             the groups of workflows/, and of those graphs the blueprints in subgraphs/"
	@echo "make bench              these benchmarks into benchmarks/RESULTS.md: under an hour on two idle"
	@echo "                        cores; one by bench-NAME: $(BENCHES)"
	@echo "                        (BENCH=\"--runs 1 --small\" only tries them and writes nothing)"
	@echo "make bench-growth       quality against cost of growing, on the teacher in $(SCENES): an hour for"
	@echo "                        each 16 pictures a row on one core (BENCH=\"--count 1000 --device cuda\")"
	@echo "make evaluate           the model card's table of the embedded weights, measured anew: COUNT=n pictures a"
	@echo "                        row, NEW=n never trained on; where there is no classifier it trains one, an hour"
	@echo "make faithfulness       what drafts of the embedded student promise: a few minutes, with a classifier"
	@echo "make pictures           the README's and the model card's pictures, from the embedded weights;"
	@echo "                        editor-pictures: those of graphs, in a real browser"
	@echo "make data               fetch the figures and paint the first training pictures"
	@echo "make train-autoencoder  then train-teacher, train-classifier and train-student: the embedded"
	@echo "                        student from nothing, in $(SCENES) and $(STUDENTS); train-decoder: the"
	@echo "                        decoder, on what they make. Each goes on where it was stopped (MINUTES=n)"
	@echo "make ablation           the paper's ablation on the scene teacher, which it trains if there is none:"
	@echo "                        three hours (STEPS=n each)"
	@echo "make prompts-alone      students from prompts alone beside those from pictures, MINUTES=n of the"
	@echo "                        clock each; make eta: shares of predicted noise in the sampler"

$(VENV)/demo.stamp: requirements-demo.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"Python 3.11 or newer is needed: PYTHON=python3.11 make ...")'
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

$(VENV)/dev.stamp: requirements-dev.txt $(VENV)/demo.stamp
	$(RUN) -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

demo: $(VENV)/demo.stamp
	mkdir -p output
	$(RUN) -m swd_core generate "$(PROMPT)" --seed 7 --strip --overwrite --out output/demo.png
	@echo
	@echo "The picture is output/demo.png; output/demo_strip.png shows how it grew."

# One thread unless told otherwise: small models run faster so, and the last bits depend on the number.
test test-browser pictures editor-pictures evaluate faithfulness prompts-alone eta: export OMP_NUM_THREADS ?= 1

# A file a process, on four cores at most: each process holds a torch and models of its own. In the order of
# their names: few files have as few tests as the slowest, which would come last.
PARALLEL := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# pytest itself, not python -m pytest: that would put this folder, and with it our nodes/, first on sys.path.
test: $(VENV)/dev.stamp
	$(VENV)/bin/pytest $(PARALLEL) --ignore=tests/browser $(if $(HOST_PYTHON),--ignore=tests/host)
ifneq ($(HOST_PYTHON),)
	COMFYUI_PATH=$(COMFYUI) $(HOST_PYTHON) -P -m pytest \
		$(if $(shell $(HOST_PYTHON) -c "import xdist" 2>/dev/null && echo yes),$(PARALLEL)) tests/host
endif

$(VENV)/browser.stamp: requirements-browser.txt $(VENV)/dev.stamp
	$(RUN) -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

# The server runs in the host's environment, the browser is driven from ours.
ifneq ($(and $(CHROMIUM),$(wildcard $(COMFYUI)/main.py)),)
test-browser: $(VENV)/browser.stamp
	COMFYUI_PATH=$(COMFYUI) CHROMIUM=$(CHROMIUM) $(VENV)/bin/pytest tests/browser

editor-pictures: $(VENV)/browser.stamp
	COMFYUI_PATH=$(COMFYUI) CHROMIUM=$(CHROMIUM) $(VENV)/bin/pytest tests/browser/pictures.py -k classic
else
test-browser editor-pictures:
	@echo "$@ skipped: it needs Chromium (CHROMIUM=path) and a ComfyUI (COMFYUI_PATH=folder)"
endif

lint: $(VENV)/dev.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/vulture

pictures: $(VENV)/dev.stamp
	$(RUN) tools/pictures.py

node:
	$(PYTHON) tools/new_node.py "$(NAME)" "$(DOES)"
	$(PYTHON) tools/locales.py

locales:
	$(PYTHON) tools/locales.py

graphs:
	$(PYTHON) tools/groups.py
	$(PYTHON) tools/blueprints.py

# One after the other, also with -j: they would take each other's time. One that fails stops no other.
bench:
	@failed=0; $(foreach b,$(BENCHES),$(MAKE) --no-print-directory bench-$(b) || failed=1;) exit $$failed

# Not among the others: it needs the teacher and its classifier, which are trained and not shipped.
.PHONY: bench-growth bench-growth-drafts
bench-growth: $(VENV)/dev.stamp runs/fluent-emoji-3d/package/assets
	$(RUN) benchmarks/growth.py --scenes $(SCENES) --assets runs/fluent-emoji-3d/package/assets $(BENCH)

bench-growth-drafts: $(VENV)/dev.stamp
	$(RUN) benchmarks/growth_drafts.py --scenes $(SCENES) $(BENCH)

# Run as files, not as modules: that puts benchmarks/ first on sys.path, not our nodes/.
$(HOST_BENCHES:%=bench-%): bench-%:
ifneq ($(HOST_PYTHON),)
	COMFYUI_PATH=$(COMFYUI) $(HOST_PYTHON) benchmarks/$(subst -,_,$*).py $(BENCH)
else
	@echo "bench-$* skipped: it needs a ComfyUI (COMFYUI_PATH=folder) and its own interpreter"
endif

bench-scenes: $(VENV)/dev.stamp
	$(RUN) benchmarks/scenes_steps.py $(BENCH)

bench-distill: $(VENV)/dev.stamp
	$(RUN) benchmarks/distill.py $(BENCH)

# The classifier that measures is trained on the spot; it is not among the embedded weights. Rows that are
# in the file stay, so that a stopped run goes on.
evaluate: $(VENV)/dev.stamp $(FIGURES) $(SCENES)/scenes_classifier.safetensors
	$(RUN) -m swd_core.lab.evaluate $(FIGURES) --scenes $(SCENES) --run swd_core/scenes/weights \
		--count $(COUNT) --new $(NEW) --out $(SCENES)/evaluated_$(COUNT)_$(NEW).json --nearest $(SCENES)/nearest.jpg

faithfulness: $(VENV)/dev.stamp $(SCENES)/scenes_classifier.safetensors
	$(RUN) -m swd_core.lab.faithfulness --scenes $(SCENES) --out docs/faithfulness.json

$(FIGURES):
	rm -rf runs/fluent-emoji-3d runs/fluent.part
	mkdir -p runs/fluent.part
	cd runs/fluent.part && tar -xzf "$$(npm pack --silent $(FIGURES_PACKAGE))"
	mv runs/fluent.part runs/fluent-emoji-3d

data: $(VENV)/dev.stamp $(FIGURES)
	$(RUN) -m swd_core.lab.pictures $(FIGURES) --out $(SCENES) --count 1000

train-autoencoder: data
	$(RUN) -m swd_core.lab.train_autoencoder --out $(SCENES) $(TIME)

# Once there is a student (STUDENTS): the decoder alone, on latents as the models make them, too.
train-decoder: $(VENV)/dev.stamp
	$(RUN) -m swd_core.lab.made --scenes $(SCENES) --run $(STUDENTS) --lora scalewise4
	$(RUN) -m swd_core.lab.train_decoder --out $(SCENES) $(TIME)

train-classifier: $(VENV)/dev.stamp $(FIGURES)
	$(RUN) -m swd_core.lab.pictures $(FIGURES) --out $(SCENES) --count 12000
	$(RUN) -m swd_core.lab.classifier $(FIGURES) --out $(SCENES) $(TIME)

# Shards of latents may grow in number (PICTURES=n) while the teacher trains.
latents: $(VENV)/dev.stamp $(FIGURES) $(SCENES)/scenes_vae.safetensors
	$(RUN) -m swd_core.lab.latents $(FIGURES) --out $(SCENES) --count $(PICTURES)

train-teacher: latents
	$(RUN) -m swd_core.lab.train_teacher --out $(SCENES) $(TIME)

# Its first step learns which noise means which picture; then all steps, with less and with more of the
# MMD; then, from what lies between the two, twice more with half of the batches for what a draft is. The
# student is .7 of their mean and .3 of one that all losses made, which draws cleaner edges.
train-student: $(VENV)/dev.stamp
	$(RUN) -m swd_core.lab.pairs --run $(SCENES) --out $(STUDENTS)
	$(STUDENT) --name first --pairs $(STUDENTS) --first 1 --mmd 0 --dmd 0 --gan 0 --lr 1e-3 \
		--fake-steps 1 --ema 0.98 --minutes 10
	$(STUDENT) --name sharper --begin $(STUDENTS)/first $(SHARPER) $(TIME)
	$(STUDENT) --name softer --begin $(STUDENTS)/first $(PAIRED) --mmd 0.5 $(TIME)
	$(BETWEEN) $(STUDENTS)/sharper $(STUDENTS)/softer --out $(STUDENTS)/whole
	$(STUDENT) --name early --begin $(STUDENTS)/whole $(SHARPER) --early 0.5 --seed 21 $(TIME)
	$(STUDENT) --name earlier --begin $(STUDENTS)/whole $(SHARPER) --early 0.5 --seed 23 $(TIME)
	$(STUDENT) --name plain --fake-steps 1 --ema 0.98 --batch-tokens 4096 --steps 300
	$(BETWEEN) $(STUDENTS)/early $(STUDENTS)/earlier --out $(STUDENTS)/drafts
	$(BETWEEN) $(STUDENTS)/drafts $(STUDENTS)/plain --share 0.3 --out $(STUDENTS)/scalewise4

$(SCENES)/scenes_vae.safetensors:
	$(MAKE) train-autoencoder MINUTES=

$(SCENES)/scenes_classifier.safetensors:
	$(MAKE) train-classifier MINUTES=

$(SCENES)/teacher.pt:
	$(MAKE) train-teacher MINUTES=

ablation: $(VENV)/dev.stamp $(FIGURES) $(SCENES)/teacher.pt $(SCENES)/scenes_classifier.safetensors
	$(RUN) -m swd_core.lab.ablation $(FIGURES) --scenes $(SCENES) $(if $(STEPS),--steps $(STEPS))

# Two trainings at a time, one of each kind: they share the machine alike.
prompts-alone: $(VENV)/dev.stamp $(FIGURES) $(SCENES)/teacher.pt $(SCENES)/scenes_classifier.safetensors
	$(RUN) -m swd_core.lab.ablation $(FIGURES) --scenes $(SCENES) --variants all prompts --jobs 2 \
		--minutes $(or $(MINUTES),15)

# The embedded student in six steps; full4, too, in a folder of students that has it (--run).
eta: $(VENV)/dev.stamp $(FIGURES) $(SCENES)/scenes_classifier.safetensors
	$(RUN) -m swd_core.lab.evaluate $(FIGURES) --scenes $(SCENES) --run swd_core/scenes/weights \
		--eta 0 0.5 0.7 0.9 --out $(SCENES)/eta.json
