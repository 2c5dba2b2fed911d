"""The specification of SQAIR in float64 NumPy, slot by slot and frame by frame, with the original's weights.

No weight is split, nothing is computed before its slot, nothing is shared between frames. It is the reference for
flags that no recorded figures cover.
"""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.logaddexp(0, x)


def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def normal(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)


def coords(where):
    return np.concatenate([np.maximum(sigmoid(where[:2]), 1e-4), np.tanh(where[2:])])


def axis_weights(scale, shift, n_out, n_in):
    position = (scale * np.linspace(-1, 1, n_out) + shift + 1) * (n_in - 1) / 2
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(n_in)))


def crop(image, where, size):
    """image [H, W, C] -> [size, size, C]."""
    sx, sy, tx, ty = coords(where)
    return np.einsum(
        "ih,hwc,jw->ijc", axis_weights(sy, ty, size, image.shape[0]), image, axis_weights(sx, tx, size, image.shape[1])
    )


def paste(glimpse, where, height, width):
    """glimpse [h, w, C] -> [H, W, C]."""
    sx, sy, tx, ty = coords(where)
    return np.einsum(
        "ih,hwc,jw->ijc",
        axis_weights(1 / sy, -ty / sy, height, glimpse.shape[0]),
        glimpse,
        axis_weights(1 / sx, -tx / sx, width, glimpse.shape[1]),
    )


class NumpySQAIR:
    """One particle at a time. `weights`: original name -> value."""

    def __init__(self, config, weights):
        self.c = config
        self.w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
        base = {"VanillaRNN": "vanilla_rnn", "GRU": "gru"}
        self.cells = []
        for kind in (config.transition, config.time_transition, config.prior_transition):
            n = sum(cell.split("_")[0] == base[kind].split("_")[0] for cell in self.cells)
            self.cells.append(base[kind] + (f"_{n}" if n else ""))
        self.disc_cell = base[config.transition]

    # Layers.
    def linear(self, scope, *x):
        return np.concatenate(x) @ self.w[f"{scope}/w"] + self.w[f"{scope}/b"]

    def mlp(self, scope, n_hidden, *x, out=False):
        x = np.concatenate(x)
        for i in range(n_hidden + out):
            x = self.linear(f"{scope}/mlp/linear" + (f"_{i}" if i else ""), x)
            x = elu(x) if i < n_hidden else x
        return x

    def cell(self, scope, state, *x):
        x = np.concatenate(x)
        if f"{scope}/in_to_hidden/w" in self.w:
            return np.tanh(self.linear(f"{scope}/in_to_hidden", x) + self.linear(f"{scope}/hidden_to_hidden", state))
        w = {
            gate: (self.w[f"{scope}/w{gate}"], self.w[f"{scope}/u{gate}"], self.w[f"{scope}/b{gate}"]) for gate in "zrh"
        }
        z, r = (sigmoid(x @ w[gate][0] + state @ w[gate][1] + w[gate][2]) for gate in "zr")
        return (1 - z) * state + z * np.tanh(x @ w["h"][0] + (r * state) @ w["h"][1] + w["h"][2])

    def gaussian(self, scope, x):
        if len(x) != 2 * self.c.n_what:
            x = self.linear(f"{scope}/gaussian_from_param_vec/linear", x)
        return x[: self.c.n_what], softplus(x[self.c.n_what :]) + 0.01

    def encode(self, image, where, temporal=None):
        glimpse = crop(image, where, self.c.glimpse_size)
        if self.c.masked_glimpse and temporal is not None:
            mask = sigmoid(self.mlp("discovery/discovery_core/air_encoder", 1, temporal, out=True))
            glimpse = glimpse * mask.reshape(self.c.glimpse_size, self.c.glimpse_size, 1)
        return self.gaussian(
            "discovery/discovery_core/air_encoder", self.mlp("discovery/discovery_core/encoder_1", 2, glimpse.ravel())
        )

    def where_head(self, scope, *x):
        y = self.mlp(f"{scope}/stochastic_transform_param", 2, *x, out=True)
        return y[:4], y[4:] + self.w[f"{scope}/stochastic_transform_param/scale_offset"]

    def presence(self, scope, previous, uniform, *x):
        logit = self.mlp(f"{scope}/steps_predictor", 1, *x, out=True)
        logit = previous * logit + (previous - 1) * 88.0
        return (uniform < sigmoid(logit)) * previous, logit

    # The two cores over their slots; an object is a dictionary.
    def discover(self, image, conditioning, noise):
        state = self.w[f"discovery/discover/discovery/{self.disc_cell}_initial_state_0/w"][0]
        what, where, presence = np.zeros(self.c.n_what), np.zeros(4), np.ones(1)
        found = []
        for k in range(self.c.n_steps_per_image):
            state = self.cell(
                f"discovery/{self.disc_cell}",
                state,
                self.mlp("discovery/discovery_core/encoder", 2, image.ravel()),
                conditioning,
                what,
                where,
                presence,
            )
            where_loc, raw = self.where_head("discovery/discovery_core", state)
            where_scale = softplus(raw) + 0.01
            where = where_loc + where_scale * noise["disc_where"][k]
            what_loc, what_scale = self.encode(image, where)
            what = what_loc + what_scale * noise["disc_what"][k]
            presence, logit = self.presence(
                "discovery/discovery_core", presence, noise["disc_presence"][k], state, what
            )
            found.append(
                dict(
                    what=what,
                    what_loc=what_loc,
                    what_scale=what_scale,
                    where=where,
                    where_loc=where_loc,
                    where_scale=where_scale,
                    presence=presence,
                    presence_logit=logit,
                )
            )
        return found

    def propagate(self, image, objects, noise):
        core, (rnn, temporal_cell, _) = "propagation/propagation_core", self.cells
        state = self.w[f"propagation/sequential_ssm/propagation/{rnn}_initial_state_0/w"][0]
        what, where, presence = np.zeros(self.c.n_what), np.zeros(4), np.zeros(1)
        kept = []
        for k, old in enumerate(objects):
            s = old["temporal"]
            bias = 0.1 * self.mlp(f"{core}/rnn_inpt", 1, s, out=True)
            m, _ = self.encode(image, old["where"] + bias, s)
            state = self.cell(
                f"propagation/{rnn}", state, m, what, where, presence, old["what"], old["where"], old["presence"], s
            )
            update, raw = self.where_head(core, state, old["where"], s)
            where_loc, where_scale = old["where"] + update, softplus(raw - 1) + 0.01
            where = where_loc + self.where_tril(where_scale) @ noise["prop_where"][k]
            g_loc, g_scale = self.encode(image, where, s)
            temporal = self.cell(f"propagation/{temporal_cell}", s, state, where, g_loc, g_scale)
            n_loc, n_scale = self.gaussian(f"{core}/what", temporal)
            f, i, t = np.split(0.9999 * sigmoid(self.linear(f"{core}/what/linear", temporal)), 3)
            what_loc = f * old["what"] + (1 - i) * g_loc + (1 - t) * n_loc
            what_scale = (1 - i) * g_scale + (1 - t) * n_scale
            what = what_loc + what_scale * noise["prop_what"][k]
            presence, logit = self.presence(core, old["presence"], noise["prop_presence"][k], state, s, what)
            kept.append(
                dict(
                    what=what,
                    what_loc=what_loc,
                    what_scale=what_scale,
                    where=where,
                    where_loc=where_loc,
                    where_scale=where_scale,
                    presence=presence,
                    presence_logit=logit,
                    temporal=temporal,
                )
            )
        return kept

    def where_tril(self, scale):
        """diag(scale) + scale * fill_triangular(c), TFP's order."""
        c = self.w["propagation/propagation_core/affine_diag_normal/cholesky_scale"]
        full = np.concatenate([c[4:], c[::-1]]).reshape(4, 4)
        return np.diag(scale) + scale[:, None] * np.tril(full)

    def prior(self, old):
        scope = {
            "rnn": "propagate_prior",
            "rw": "random_walk_propagate_prior",
            "guided": "guided_walk_propagate_prior",
        }[self.c.prop_prior_type]
        state = self.cell(f"propagation/{self.cells[2]}", old["prior"], old["what"], old["where"])
        y = self.linear(f"propagation/{scope}/linear", state)
        d = self.c.n_what
        logit, where_loc, what_loc, where_raw, what_raw = np.split(y, np.cumsum([1, 4, d, 4]))
        logit = old["presence"] * (logit + self.c.prop_prior_step_bias) + (old["presence"] - 1) * 88.0
        if self.c.prop_prior_type != "rnn":
            guide = 0.1 * (self.c.prop_prior_type == "guided")
            where_loc, what_loc = old["where"] + guide * where_loc, old["what"] + guide * what_loc
            logit = old["presence_logit"] + 0.1 * logit
        return dict(
            state=state,
            logit=logit,
            where_loc=where_loc,
            what_loc=what_loc,
            where_scale=softplus(where_raw) + 0.01,
            what_scale=softplus(what_raw) + 0.01,
        )

    # Log-probabilities.
    def propagation_terms(self, objects, kept, priors):
        q = p = discrete = 0.0
        for old, new, prior in zip(objects, kept, priors):
            both = (old["presence"] * new["presence"])[0]
            tril = self.where_tril(new["where_scale"])
            white = np.linalg.solve(tril, new["where"] - new["where_loc"])
            density = normal(white, 0, 1).sum() - np.log(np.abs(np.diag(tril))).sum()
            q += both * (normal(new["what"], new["what_loc"], new["what_scale"]).sum() + density)
            p += both * (
                normal(new["what"], prior["what_loc"], prior["what_scale"]).sum()
                + normal(new["where"], prior["where_loc"], prior["where_scale"]).sum()
            )
            for logit, is_q in ((new["presence_logit"], True), (prior["logit"], False)):
                term = old["presence"][0] * -softplus(-logit if new["presence"][0] else logit)[0]
                q, p, discrete = q + term * is_q, p + term * (not is_q), discrete + term * is_q
        return q, p, discrete

    def discovery_terms(self, found, conditioning, expected, t):
        scale_prior = [float(x) for x in self.c.scale_prior.split(",")]
        where_mean = np.array([scale_prior[0], scale_prior[-1], 0, 0])
        chance = np.array([sigmoid(new["presence_logit"][0]) for new in found])
        n = int(sum(new["presence"][0] for new in found))
        steps = [np.prod(chance[:k]) * (1 - chance[k] if k < len(chance) else 1) for k in range(len(chance) + 1)]
        discrete = np.log(np.clip(steps[n] / np.sum(steps), 1e-16, 1))
        q, p = discrete, 0.0
        if self.c.rec_where_prior:
            scope = "discovery/discover/recurrent_normal_impl"
            state = elu(
                self.linear(
                    f"{scope}/linear_1",
                    self.w[f"{scope}/{scope}/vanilla_rnn_initial_state_0/w"][0],
                    conditioning,
                    expected,
                )
            )
            previous = self.w[f"{scope}/init_sample"][0]
        for new in found:
            loc, scale = where_mean, 1.0
            if self.c.rec_where_prior:
                y = self.linear(f"{scope}/linear", self.cell(f"{scope}/vanilla_rnn", state, previous))
                loc, scale, previous = y[:4], softplus(y[4:]) + 0.01, new["where"]
            q += new["presence"][0] * (
                normal(new["what"], new["what_loc"], new["what_scale"]).sum()
                + normal(new["where"], new["where_loc"], new["where_scale"]).sum()
            )
            p += new["presence"][0] * (normal(new["what"], 0, 1).sum() + normal(new["where"], loc, scale).sum())
        if self.c.disc_prior_type == "geom":
            return q, p + n * np.log(self.c.step_success_prob) + np.log(1 - self.c.step_success_prob), discrete
        scope = "model/sequential_air/while/sqair_timestep/discover"
        logits = elu(
            self.w[f"{scope}/step_prior_bias"]
            + (t > 0) * self.w[f"{scope}/step_prior_timestep_bias"]
            + self.mlp("discovery/discover", 1, expected, out=True)
        )
        return q, p + logits[n] - np.logaddexp.reduce(logits), discrete

    def decode(self, objects, height, width, channels):
        size = self.c.glimpse_size
        canvas, covered = np.zeros([height, width, channels]), np.zeros([height, width, channels])
        for new in objects:
            glimpse = self.mlp("decoder/air_decoder/decoder", 2, new["what"], out=True)
            glimpse = glimpse.reshape(size, size, channels) * self.w["decoder/air_decoder/decoder/output_scale"]
            canvas += new["presence"][0] * paste(glimpse, new["where"], height, width)
            covered += new["presence"][0] * paste(np.ones([size, size, channels]), new["where"], height, width)
        if "decoder/air_decoder/Variable" in self.w:
            canvas += self.w["decoder/air_decoder/Variable"] * sigmoid(-10 + 20 * covered)
        return canvas

    def run(self, images, noise):
        """One particle: images [T, H, W, C]; noise name -> [T, N, d]. Returns a list of dictionaries, one per frame."""
        n = self.c.n_steps_per_image
        _, temporal, prior = self.cells
        start = {
            "temporal": self.w[f"sequence/sequential_air/propagation/{temporal}_initial_state_0/w"][0],
            "prior": self.w[f"sequence/sequential_air/propagation/{prior}_initial_state_0/w"][0],
        }
        objects = [
            dict(
                what=np.zeros(self.c.n_what),
                where=np.zeros(4),
                presence=np.zeros(1),
                presence_logit=np.zeros(1),
                id=-1,
                **start,
            )
            for _ in range(n)
        ]
        last_id, frames = -1, []
        for t, image in enumerate(images):
            here = {name: value[t] for name, value in noise.items()}
            kept, priors = self.propagate(image, objects, here), [self.prior(old) for old in objects]
            conditioning = sum(
                new["presence"] * self.mlp("sequence/sequential_air/sqair_timestep", 2, new["what"], new["where"])
                for new in kept
            )
            expected = sum(sigmoid(prior["logit"]) - 0.5 for prior in priors) / n
            found = self.discover(image, conditioning, here)
            q_prop, p_prop, discrete_prop = self.propagation_terms(objects, kept, priors)
            q_disc, p_disc, discrete_disc = self.discovery_terms(found, conditioning, expected, t)
            for old, new, prior in zip(objects, kept, priors):
                new.update(prior=prior["state"], id=old["id"] if new["presence"][0] else -1)
            for new in found:
                new.update(start, id=-1)
                if new["presence"][0]:
                    last_id += 1
                    new["id"] = last_id
            objects = sorted(kept + found, key=lambda new: new["presence"][0] == 0)[:n]
            canvas = self.decode(objects, *image.shape)
            data_ll = normal(image, canvas, self.c.output_std).sum()
            frames.append(
                dict(
                    data_ll=data_ll,
                    log_q=q_prop + q_disc,
                    log_p=p_prop + p_disc,
                    canvas=canvas,
                    discrete_log_prob=discrete_prop + discrete_disc,
                    object_id=[new["id"] for new in objects],
                    what=[new["presence"] * new["what"] for new in objects],
                    where=[new["presence"] * new["where"] for new in objects],
                    n_propagated=sum(new["presence"][0] for new in kept),
                    n_discovered=sum(x["presence"][0] for x in found),
                    log_weights_per_frame=data_ll - q_prop - q_disc + p_prop + p_disc,
                )
            )
        return frames
