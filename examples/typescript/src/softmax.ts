/** Training of the owner's own: softmax regression by gradient descent on rows of features and a class.
 *
 * Its parameters are those of a model with one dense layer: weights (features × classes), then biases.
 */

import type { Update } from "./device.js";
import { singles } from "./numbers.js";
import type { Body } from "./schema.js";

const LOSS_MICROS = 1e6;

export interface Example {
  features: number[];
  target: number;
}

/** A line an example: its features, then its class. */
export function readExamples(text: string): Example[] {
  return text.trim().split("\n").map((line) => {
    const values = line.split(",").map(Number);
    return { features: values.slice(0, -1), target: values.at(-1)! };
  });
}

/** Batch after batch, `training.epochs` times; statistics: examples, and their summed loss of the last epoch in 10^-6. */
export function train(examples: Example[], model: Uint8Array, training: Body): Update {
  const start = singles(model);
  const parameters = Float64Array.from(start);
  const width = examples[0].features.length;
  const classes = parameters.length / (width + 1);
  let loss = 0;
  for (let epoch = 0; epoch < training.epochs; epoch++) {
    loss = 0;
    for (let first = 0; first < examples.length; first += training.batch_size) {
      const batch = examples.slice(first, first + training.batch_size);
      const gradient = new Float64Array(parameters.length);
      for (const { features, target } of batch) {
        const odds = softmax(logits(parameters, features, classes));
        loss -= Math.log(Math.max(odds[target], 1e-12));
        odds[target] -= 1;
        odds.forEach((error, j) => {
          features.forEach((x, i) => (gradient[i * classes + j] += (x * error) / batch.length));
          gradient[width * classes + j] += error / batch.length;
        });
      }
      const [rate, pull] = [training.rate_micros / 1e6, training.proximal_micros / 1e6];
      gradient.forEach((slope, i) => (parameters[i] -= rate * (slope + pull * (parameters[i] - start[i]))));
    }
  }
  const update = start.map((before, i) => parameters[i] - before);
  return { update, weight: examples.length, statistics: [examples.length, Math.round(loss * LOSS_MICROS)] };
}

function logits(parameters: Float64Array, features: number[], classes: number): number[] {
  return Array.from({ length: classes }, (_, j) =>
    features.reduce((total, x, i) => total + x * parameters[i * classes + j], parameters[features.length * classes + j]));
}

function softmax(values: number[]): number[] {
  const most = Math.max(...values);
  const powers = values.map((value) => Math.exp(value - most));
  const total = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / total);
}
