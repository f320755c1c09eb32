"""The harness's model interface: the numbers of its own adapter, however requests are batched and shared."""

import random
from types import SimpleNamespace

import pytest
import torch
from lm_eval.api.instance import Instance
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from crosscal.disk import StreamedModel
from crosscal.errors import InputError
from crosscal.metrics.tasks.adapter import _can_share, _InMemoryLM, _StreamedLM
from crosscal.models import load_model
from tests.unit.families import FAMILIES, VOCAB, save_tiny, tiny_model, tiny_tokenizer

MAX_LENGTH = 128


def reference(model, **options):
    """The harness's own adapter over the same model."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tiny_tokenizer(), batch_size=3, max_length=MAX_LENGTH, **options)


def requests(n_contexts: int = 12, longest: int = 40, seed: int = 0) -> list[tuple]:
    """Token requests as the harness makes them: several options after each context, some of one token."""
    draw = random.Random(seed)

    def tokens(n):
        return [draw.randrange(3, VOCAB) for _ in range(n)]

    found = []
    for _ in range(n_contexts):
        context = tokens(draw.randint(1, longest))
        found += [(("", ""), context, tokens(draw.choice([1, 1, 2, 5, 9]))) for _ in range(draw.randint(1, 4))]
    draw.shuffle(found)
    return found


def text_requests(*pairs) -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]


def assert_same(ours, theirs):
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    torch.testing.assert_close(
        torch.tensor([p for p, _ in ours]), torch.tensor([p for p, _ in theirs]), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share", [True, False])
def test_adapter_agrees_with_the_harness(family, share):
    model, asked = tiny_model(family), requests()
    theirs = reference(model)._loglikelihood_tokens(asked, disable_tqdm=True)
    lm = _InMemoryLM(model, tiny_tokenizer(), progress=False, share=share)
    assert_same(lm._loglikelihood_tokens(asked), theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_contexts_are_shared_in_every_family(family):
    assert _can_share(tiny_model(family))


def test_models_without_a_cache_run_whole_rows(monkeypatch):
    model = tiny_model("llama")
    plain = _InMemoryLM(model, tiny_tokenizer(), progress=False, share=False)._loglikelihood_tokens(requests())
    forward = model.base_model.forward

    def without_cache(*args, **kwargs):
        return SimpleNamespace(last_hidden_state=forward(*args, **kwargs).last_hidden_state, past_key_values=None)

    monkeypatch.setattr(model.base_model, "forward", without_cache)
    lm = _InMemoryLM(model, tiny_tokenizer(), progress=False)
    assert not lm.share
    assert lm._loglikelihood_tokens(requests()) == plain


@pytest.mark.parametrize("budget", [1, 50, 300, 10**6])
def test_budget_changes_rounding_only(budget):
    model, asked = tiny_model("llama"), requests(30)
    expected = _InMemoryLM(model, tiny_tokenizer(), progress=False, share=False)._loglikelihood_tokens(asked)
    lm = _InMemoryLM(model, tiny_tokenizer(), token_budget=budget, progress=False)
    assert_same(lm._loglikelihood_tokens(asked), expected)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_contexts_too_long_lose_their_beginning(family):
    model, asked = tiny_model(family), requests(6, longest=200, seed=1)
    assert max(len(context) for _, context, _ in asked) > MAX_LENGTH
    theirs = reference(model)._loglikelihood_tokens(asked, disable_tqdm=True)
    assert_same(_InMemoryLM(model, tiny_tokenizer(), progress=False)._loglikelihood_tokens(asked), theirs)


def test_options_longer_than_the_model_go_in_pieces():
    model, tokens = tiny_model("llama"), requests(1, longest=1, seed=3)[0][1] + list(range(3, 103)) * 2
    lm = _InMemoryLM(model, tiny_tokenizer(), progress=False)
    ((whole, _),) = lm._loglikelihood_tokens([(("", ""), tokens[:1], tokens[1:])])
    first = model(torch.tensor([tokens[:128]])).logits[0].log_softmax(-1)
    expected = sum(first[i, tokens[i + 1]].item() for i in range(128))
    start = len(tokens) - 129
    second = model(torch.tensor([tokens[start:-1]])).logits[0].log_softmax(-1)
    expected += sum(second[i - start, tokens[i + 1]].item() for i in range(128, len(tokens) - 1))
    assert whole == pytest.approx(expected, rel=1e-5)


def test_text_is_split_as_in_the_harness():
    model = tiny_model("llama")
    asked = text_requests(("", "abc"), ("abc", " def"), ("abc ", "def"), ("<s>abc", " d"), ("xyz", " w, v."))
    ours = _InMemoryLM(model, tiny_tokenizer(), progress=False).loglikelihood(asked)
    assert_same(ours, reference(model).loglikelihood(asked, disable_tqdm=True))
    assert ours[1] == ours[2]  # a space at the end of a context moves to the option


def test_rolling_sums_every_token_once():
    model = tiny_model("gpt2")
    draw = random.Random(0)
    texts = ["abc def", "".join(draw.choices("abcdefghijklmnop ", k=300)), "q"]
    asked = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    ours = _InMemoryLM(model, tiny_tokenizer(), progress=False).loglikelihood_rolling(asked)
    assert ours == pytest.approx(reference(model).loglikelihood_rolling(asked, disable_tqdm=True), rel=1e-5)


def test_greedy_generation_is_the_harness_s():
    model = tiny_model("llama")
    options = {"until": ["a"], "max_gen_toks": 12, "do_sample": False}
    asked = [Instance("generate_until", {}, (text, dict(options)), 0) for text in ("abc", "xyz xyz", "q")]
    ours = _InMemoryLM(model, tiny_tokenizer(), progress=False).generate_until(asked)
    assert ours == reference(model).generate_until(asked, disable_tqdm=True)


def test_sampling_and_too_much_text_are_errors():
    lm = _InMemoryLM(tiny_model("llama"), tiny_tokenizer(), progress=False)
    with pytest.raises(InputError, match="only greedy"):
        lm._generate("abc", {"do_sample": True, "temperature": 0.7})
    with pytest.raises(InputError, match="up to 500 tokens"):
        lm._generate("abc", {"max_gen_toks": 500})


def wrapping_tokenizer(template):
    """The tiny tokenizer, which wraps every text in a template; none: it knows no start and no end token either."""
    raw = tiny_tokenizer().backend_tokenizer
    if not template:
        return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
    raw.post_processor = TemplateProcessing(template, special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("template", ["", "$A", "<s> $A", "<s> $A </s>", "$A </s>", "<s> <s> $A </s> </s>"])
def test_options_follow_contexts_for_any_template(template):
    model, tokenizer = tiny_model("llama"), wrapping_tokenizer(template)
    lm = _InMemoryLM(model, tokenizer, progress=False)
    context = [1] * template.count("<s>") + tokenizer.encode("Open the", add_special_tokens=False)
    option = tokenizer.encode(" valve", add_special_tokens=False)
    logprobs = model(torch.tensor([context + option])).logits[0].log_softmax(-1)
    expected = sum(logprobs[len(context) - 1 + i, token].item() for i, token in enumerate(option))
    ((logprob, _),) = lm.loglikelihood(text_requests(("Open the", " valve")))
    assert logprob == pytest.approx(expected, abs=1e-4)
    written = model.generate(torch.tensor([context]), max_new_tokens=3, do_sample=False)[0, len(context) :]
    assert lm._generate("Open the", {"max_gen_toks": 3}) == tokenizer.decode(written, skip_special_tokens=True)


def test_empty_contexts_need_a_prefix_token():
    lm = _InMemoryLM(tiny_model("llama"), wrapping_tokenizer(""), progress=False)
    with pytest.raises(InputError, match="no beginning-of-sequence and no end-of-text token"):
        lm.loglikelihood(text_requests(("", "valve")))
    with pytest.raises(InputError, match="no beginning-of-sequence"):
        lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("valve",), 0)])


def test_options_without_tokens_are_errors():
    lm = _InMemoryLM(tiny_model("llama"), tiny_tokenizer(), progress=False)
    with pytest.raises(InputError, match="no token of its own after its context"):
        lm.loglikelihood(text_requests(("abc", "")))


def test_tied_tokens_are_not_greedy():
    model = tiny_model("llama")
    lm = _InMemoryLM(model, tiny_tokenizer(), progress=False)
    first = model(torch.tensor([[4, 5]])).logits[0, -1].argmax().item()
    ((_, alone),) = lm._loglikelihood_tokens([(("", ""), [4, 5], [first])])
    model.lm_head.weight[(first + 1) % VOCAB] = model.lm_head.weight[first]
    ((_, tied),) = lm._loglikelihood_tokens([(("", ""), [4, 5], [first])])
    assert (alone, tied) == (True, False)


@pytest.mark.parametrize("share", [None, False, True])
def test_non_finite_scores_are_one_sentence(share):
    model = tiny_model("llama")
    model.lm_head.weight[7] = float("nan")
    lm = _InMemoryLM(model, tiny_tokenizer(), progress=False, share=share)
    with pytest.raises(InputError, match="NaN or infinite"):
        lm._loglikelihood_tokens(requests())
    with pytest.raises(InputError, match="NaN or infinite"):
        lm._generate("abc", {"max_gen_toks": 2})


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_streamed_scores_are_those_of_the_loaded_model(family, tmp_path):
    save_tiny(tmp_path, family)
    asked = requests(20, longest=150)
    streamed = StreamedModel(tmp_path, dtype="float32", progress=False)
    loaded = load_model(tmp_path, dtype="float32")
    expected = _InMemoryLM(*loaded, progress=False, token_budget=300, share=False)._loglikelihood_tokens(asked)
    lm = _StreamedLM(streamed, progress=False, token_budget=300)
    assert lm._loglikelihood_tokens(asked) == expected
    assert all(parameter.is_meta for parameter in streamed.model.parameters())
    texts = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in ("abc def" * 30, "q")]
    in_memory = _InMemoryLM(*loaded, progress=False, share=False)
    assert lm.loglikelihood_rolling(texts) == pytest.approx(in_memory.loglikelihood_rolling(texts), rel=1e-5)


def test_budget_must_be_at_least_one():
    with pytest.raises(InputError, match="token_budget is 0"):
        _InMemoryLM(tiny_model("llama"), tiny_tokenizer(), token_budget=0)
