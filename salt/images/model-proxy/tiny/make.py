"""
Write a GGUF model of random weights: it loads and answers as any other and knows nothing. Only its
first dimension is not left to chance: it makes letters and spaces likely, bytes and the end not.
"""

import sys

import gguf
import numpy

LAYERS, WIDTH, HEADS, FEED_FORWARD, CONTEXT = 2, 64, 4, 128, 2048
CHAT = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"

LIKELY = {
    gguf.TokenType.UNKNOWN: -4.0,
    gguf.TokenType.CONTROL: -4.0,
    gguf.TokenType.BYTE: -4.0,
    gguf.TokenType.NORMAL: 0.0,
    "▁": 0.2,
    "</s>": -0.3,
}


def vocabulary():
    """Return the tokens and their types: three marks, every byte, a space, the letters."""
    kind = gguf.TokenType
    tokens = [("<unk>", kind.UNKNOWN), ("<s>", kind.CONTROL), ("</s>", kind.CONTROL)]
    tokens += [(f"<0x{byte:02X}>", kind.BYTE) for byte in range(256)]
    tokens += [(letter, kind.NORMAL) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    return tokens


def write(path):
    """Write the model to ``path``; the same bytes every time."""
    random = numpy.random.default_rng(seed=1)
    tokens = vocabulary()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT)

    def put(name, values):
        writer.add_tensor(f"{name}.weight", values.astype("float32"))

    def weights(name, *shape):
        put(name, random.standard_normal(shape) * 0.02)

    def leaning(first):
        values = random.standard_normal((len(tokens), WIDTH)) * 0.02
        values[:, 0] = first
        return values

    def ones(name):
        put(name, numpy.ones(WIDTH))

    put("token_embd", leaning([1.0] * len(tokens)))
    for layer in range(LAYERS):
        ones(f"blk.{layer}.attn_norm")
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weights(f"blk.{layer}.{name}", WIDTH, WIDTH)
        ones(f"blk.{layer}.ffn_norm")
        weights(f"blk.{layer}.ffn_gate", FEED_FORWARD, WIDTH)
        weights(f"blk.{layer}.ffn_up", FEED_FORWARD, WIDTH)
        weights(f"blk.{layer}.ffn_down", WIDTH, FEED_FORWARD)
    ones("output_norm")
    put("output", leaning([LIKELY.get(token, LIKELY[kind]) for token, kind in tokens]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


write(sys.argv[1])
