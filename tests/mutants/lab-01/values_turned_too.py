"""The rotary embedding is applied to values too."""


class TinyAttentionModel:
    def forward(self, tokens, positions):
        hidden = self.embed_tokens(tokens)
        qkv = self.qkv_proj(self.input_layernorm(hidden)).view(len(tokens), -1, self.head_dim)
        num_heads, num_kv_heads = self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads
        cos, sin = self.rotary_emb(positions)
        q, k, v = apply_rotary(qkv, cos, sin).split([num_heads, num_kv_heads, num_kv_heads], dim=1)
        hidden = hidden + self.o_proj(self.attn(q, k, v))
        hidden = hidden + self.down_proj(self.act_fn(self.gate_up_proj(self.post_attention_layernorm(hidden))))
        return self.lm_head(self.norm(hidden))
