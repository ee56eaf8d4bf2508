"""No rotary embedding is applied, so attention does not depend on positions."""


class TinyAttentionModel:
    def forward(self, tokens, positions):
        return self.right_forward(tokens, positions * 0)
