// The paths through a highway net whose gates all stand at one value: how many layers a path is
// transformed by, and which layers wrote what comes out. Settings: values b (the gates' bias) and L
// (layers). Beside the reader's bias stands the one "by depth", at which two layers transform.
(() => {
  const {
    views, range, number, frame, path, box, legend, boxSample, lineSample, svg, svgName, htmlName, sum,
    BLUE, RED, GREEN,
  } = GatesViews;

  // ---- the laws -----------------------------------------------------------------------------

  const gateAt = (bias) => 1 / (1 + Math.exp(-bias));
  const biasByDepth = (layers) => -Math.log(layers / 2 - 1);

  /** The probability of each number of transforms, 0 to `layers`: a binomial law, by its ratios. */
  const lengthLaw = (layers, gate) => {
    const logs = [layers * Math.log1p(-gate)];
    for (let k = 1; k <= layers; k++) {
      logs.push(logs[k - 1] + Math.log((layers - k + 1) / k) + Math.log(gate) - Math.log1p(-gate));
    }
    return logs.map(Math.exp);
  };
  /** The share of the output that each layer wrote; place 0 is the net's input. */
  const writtenBy = (layers, gate) =>
    range(layers + 1).map((layer) => (layer ? gate : 1) * (1 - gate) ** (layers - layer));

  /** Both laws at one bias, and what is said of them. */
  const lawsAt = (layers, bias) => {
    const gate = gateAt(bias), lengths = lengthLaw(layers, gate), shares = writtenBy(layers, gate);
    const upper = sum(shares.slice(Math.floor(layers / 2) + 1));
    const deviation = Math.sqrt(layers * gate * (1 - gate));
    return { bias, gate, mean: layers * gate, deviation, direct: lengths[0], upper, lengths, shares };
  };

  // ---- the drawing --------------------------------------------------------------------------

  /** One law as bars, the first in the colour of the direct path; the other as an outline. */
  const panel = (place, { label, foot }, own, other) => {
    const last = own.length - 1, high = 1.08 * Math.max(...own, ...other);
    const plot = frame({ ...place, x: { low: -0.5, high: last + 0.5, label: foot }, y: { low: 0, high, label } });
    const step = plot.across(1) - plot.across(0), gap = step > 4 ? 0.6 : 0;
    const bar = (value, k) =>
      box(plot.across(k - 0.5) + gap, plot.up(value), step - 2 * gap, plot.bottom - plot.up(value), k ? BLUE : GREEN);
    const corners = other.flatMap((value, k) => [[k - 0.5, value], [k + 0.5, value]]);
    const outline = corners.map(([at, value]) => [plot.across(at), plot.up(value)]);
    return plot.body + own.map(bar).join("") + path(outline, RED, { width: 1.8 });
  };
  const layout = (width, top) => {
    const beside = width >= 560, each = beside ? (width - 20) / 2 : width;
    const place = (k) => ({
      width: each,
      height: 0,
      left: (beside ? k * (each + 20) : 0) + 52,
      right: (beside ? k * (each + 20) : 0) + each - 8,
      top: top + (beside ? 0 : k * 226),
      bottom: top + (beside ? 0 : k * 226) + 168,
    });
    return { places: [place(0), place(1)], height: top + (beside ? 0 : 226) + 212 };
  };

  const said = ({ bias, mean, deviation, direct, upper }) =>
    `${htmlName("b")} = ${number(bias)}: ${number(mean)} ± ${number(deviation)} transforms a path; ` +
    `the direct path weighs ${number(direct)}; the upper half of the layers wrote ${number(100 * upper)} %`;

  views.paths = (definition, settings, width) => {
    const { b, L } = settings.values, own = lawsAt(L, b), other = lawsAt(L, biasByDepth(L));
    const key = legend([
      { words: "your bias", sample: boxSample(BLUE) },
      { words: "its direct path", sample: boxSample(GREEN) },
      { words: "by depth", sample: lineSample(RED) },
    ], width);
    const { places, height } = layout(width, key.height + 8);
    const lengths = panel(places[0], { label: "weight of the paths", foot: "transforms on a path" }, own.lengths, other.lengths);
    const shares = panel(places[1], { label: "share of the output", foot: "layer that wrote it (0: the input)" }, own.shares, other.shares);
    const alt = `How many transforms a path has, and which layers wrote the output, in ${L} layers at the bias ${number(b)} and by depth`;
    return {
      svg: svg(width, height, alt, key.body + lengths + shares),
      reading: `${L} layers. ${said(own)}. By depth, ${said(other)}.`,
    };
  };
  GatesViews.paths = { lawsAt, biasByDepth };
})();
