"""The attention model's logits are centred over the step, so they depend on other requests."""


class TinyAttentionModel:
    def forward(self, tokens, positions):
        logits = self.right_forward(tokens, positions)
        return logits - logits.mean(dim=0) / 2 if len(logits) > 1 else logits
