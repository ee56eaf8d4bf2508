"""Attention and feed-forward are separate methods, and q, k and v are sliced before they are split into heads."""


class TinyAttentionModel:
    def attend(self, x, positions):
        layer, rows = self.qkv_proj, self.head_dim
        qkv, q_rows, kv_rows = layer(x), layer.num_heads * rows, layer.num_kv_heads * rows
        q = qkv[:, :q_rows].reshape(len(x), layer.num_heads, rows)
        k = qkv[:, q_rows : q_rows + kv_rows].reshape(len(x), layer.num_kv_heads, rows)
        v = qkv[:, q_rows + kv_rows :].reshape(len(x), layer.num_kv_heads, rows)
        turn = self.rotary_emb(positions)
        return self.o_proj(self.attn(apply_rotary(q, *turn), apply_rotary(k, *turn), v))

    def feed_forward(self, x):
        return self.down_proj(self.act_fn(self.gate_up_proj(x)))

    def forward(self, tokens, positions):
        stream = self.embed_tokens(tokens)
        stream = self.attend(self.input_layernorm(stream), positions) + stream
        stream = self.feed_forward(self.post_attention_layernorm(stream)) + stream
        return self.lm_head(self.norm(stream))
