// The perplexity that real llama.cpp gives a model (with an adapter) on a text, by the definition of
// its own perplexity tool, which is also that of `fedge eval`: windows of C tokens, the first of
// each replaced by BOS where the model adds one, tokens C/2+1 .. C-1 scored.
//   node perplexity.mjs MODEL TEXT CONTEXT WINDOWS [ADAPTER [SCALE]]
import fs from "node:fs";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const [modelPath, textPath, contextArgument, windowsArgument, adapterPath, scale] =
  process.argv.slice(2);
const size = Number(contextArgument);
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error});
const model = await llama.loadModel({modelPath, gpuLayers: 0});
const context = await model.createContext({
  contextSize: size,
  batchSize: size,
  flashAttention: false,
  ...(adapterPath && {lora: {adapters: [{filePath: adapterPath, scale: Number(scale ?? 1)}]}}),
});
const sequence = context.getSequence();
let tokens = model.tokenize(fs.readFileSync(textPath, "utf8"), false);
const bos = model.tokens.shouldPrependBosToken ? model.tokens.bos : null;
if (bos != null) tokens = [bos, ...tokens];
const windows = Math.min(Number(windowsArgument), Math.floor(tokens.length / size));
let nats = 0;
let scored = 0;
for (let window = 0; window < windows; ++window) {
  const ids = tokens.slice(window * size, (window + 1) * size);
  if (bos != null) ids[0] = bos;
  await sequence.clearHistory();
  const first = size / 2;
  const answers = await sequence.controlledEvaluate(
    ids.map((id, i) => (i < first ? id : [id, {generateNext: {probabilities: true}}])));
  for (let i = first; i + 1 < size; ++i) {
    nats -= Math.log(answers[i].next.probabilities.get(ids[i + 1]));
    ++scored;
  }
}
console.log(JSON.stringify({perplexity: Math.exp(nats / scored), windows, scored_tokens: scored}));
process.exit(0);
