"""Head counts are taken from config.json, but a rank of two has half of them."""


class TinyAttentionModel:
    def __init__(self, config):
        self.right___init__(config)
        self.heads = config["num_attention_heads"], config["num_key_value_heads"]

    def forward(self, tokens, positions):
        hidden = self.embed_tokens(tokens)
        qkv = self.qkv_proj(self.input_layernorm(hidden)).view(len(tokens), -1, self.head_dim)
        num_heads, num_kv_heads = self.heads
        q, k, v = qkv.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
        cos, sin = self.rotary_emb(positions)
        hidden = hidden + self.o_proj(self.attn(apply_rotary(q, cos, sin), apply_rotary(k, cos, sin), v))
        hidden = hidden + self.down_proj(self.act_fn(self.gate_up_proj(self.post_attention_layernorm(hidden))))
        return self.lm_head(self.norm(hidden))
