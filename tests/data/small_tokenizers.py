"""A tokenizer of single characters and a few merges, with the features that real ones differ in."""

from tokenizers import AddedToken, Tokenizer, decoders, models, processors
from transformers import PreTrainedTokenizerFast

CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,!?':;<>/|_-\n"
SPECIALS = ["<pad>", "<s>", "</s>", "<|start|>", "<|end|>"]
PAD, BOS, EOS, START, END = range(5)
CHATML = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
TRIMMING = CHATML.replace("m['content']", "m['content'] | trim")
THINKING = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n:think:\n{% endif %}"
)


def small_tokenizer(
    *, adds_bos: bool = True, adds_eos: bool = False, has_bos: bool = True, chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """Merges "4"+"2" and " "+"h", so that a token can straddle the boundary of prompt and reply."""
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *CHARACTERS, "42", " h"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("4", "2"), (" ", "h")]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    template = (["<s>"] if adds_bos and has_bos else []) + ["$A"] + (["</s>"] if adds_eos else [])
    if len(template) > 1:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(template), special_tokens=[("<s>", BOS), ("</s>", EOS)]
        )
    named = {"bos_token": "<s>"} if has_bos else {}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", **named)
    fast.chat_template = chat_template
    return fast
