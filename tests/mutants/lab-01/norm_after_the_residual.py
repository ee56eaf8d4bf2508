"""The norm is applied to the residual too, not only to the input of a layer."""


class TinyAttentionModel:
    def forward(self, tokens, positions):
        hidden = self.embed_tokens(tokens)
        hidden = self.input_layernorm(hidden)
        qkv = self.qkv_proj(hidden).view(len(tokens), -1, self.head_dim)
        num_heads, num_kv_heads = self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads
        q, k, v = qkv.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
        cos, sin = self.rotary_emb(positions)
        hidden = hidden + self.o_proj(self.attn(apply_rotary(q, cos, sin), apply_rotary(k, cos, sin), v))
        hidden = self.post_attention_layernorm(hidden)
        hidden = hidden + self.down_proj(self.act_fn(self.gate_up_proj(hidden)))
        return self.lm_head(self.norm(hidden))
