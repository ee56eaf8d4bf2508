"""Queries and keys are not turned: the model does not know where a token stands."""


class TinyAttentionModel:
    def forward(self, tokens, positions):
        return self.right_forward(tokens, positions * 0)
