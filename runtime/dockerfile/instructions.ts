/**
 * The instructions of a Dockerfile, as data. What they say is as written, variables and all, until resolve.ts expands
 * it; RUN, CMD, ENTRYPOINT and HEALTHCHECK leave variables to the shell.
 * https://docs.docker.com/reference/dockerfile/
 */
import type { ImageRunConfig } from '../../shared/oci.ts';
import type { RunMount } from './mounts.ts';
import type { Location } from './source.ts';

interface Written {
  /** As the user spells it: `Copy`. */
  readonly keyword: string;
  /** On one line with its keyword in capitals, as history and progress show it; of a here-document the first line. */
  readonly text: string;
  readonly at: Location;
  /** Of the lines right above, without `#`. */
  readonly comments: readonly string[];
}

/** `shell` is run by the shell of the image, `exec` as it is, `file` is a script with its own `#!`. */
export type CommandLine =
  | { readonly form: 'shell'; readonly script: string }
  | { readonly form: 'exec'; readonly words: readonly string[] };
export type RunCommand =
  | CommandLine
  /** A program with `#!`, put at `/dev/pipes/NAME`, which the image's shell starts. */
  | { readonly form: 'file'; readonly name: string; readonly content: string };

export interface InlineFile {
  readonly name: string;
  readonly content: string;
  readonly expands: boolean;
}

export interface Pair {
  readonly name: string;
  readonly value: string;
  /** `NAME value`, with a blank for `=`. */
  readonly isLegacy: boolean;
}

export interface FromInstruction extends Written {
  readonly kind: 'FROM';
  readonly image: string;
  readonly platform: string | undefined;
  /** Lower case. */
  readonly as: string | undefined;
  /** The name and the word before it as written. */
  readonly written: { readonly as: string; readonly name: string } | undefined;
}
export interface RunInstruction extends Written {
  readonly kind: 'RUN';
  readonly command: RunCommand;
  /** The flag's values; what they mean is known when their variables are: mounts of a resolved instruction. */
  readonly mountTexts: readonly string[];
  /** Stage, image or context that each mount comes from, which takes no variables. */
  readonly mountSources: readonly (string | undefined)[];
  /** Of a resolved instruction. */
  readonly mounts: readonly RunMount[];
  readonly network: 'default' | 'none' | 'host';
  readonly security: 'sandbox' | 'insecure';
}
interface Copying {
  /** Paths, patterns, addresses. */
  readonly sources: readonly string[];
  /** Sources that are here-documents. */
  readonly files: readonly InlineFile[];
  readonly destination: string;
  readonly chown: string | undefined;
  readonly chmod: string | undefined;
  readonly link: boolean;
  readonly exclude: readonly string[];
}
export interface CopyInstruction extends Written, Copying {
  readonly kind: 'COPY';
  readonly from: string | undefined;
  readonly parents: boolean;
}
export interface AddInstruction extends Written, Copying {
  readonly kind: 'ADD';
  readonly checksum: string | undefined;
  /** undefined = not said. */
  readonly keepGitDir: boolean | undefined;
  readonly unpack: boolean | undefined;
}
export interface EnvInstruction extends Written {
  readonly kind: 'ENV';
  readonly pairs: readonly Pair[];
}
export interface LabelInstruction extends Written {
  readonly kind: 'LABEL';
  readonly pairs: readonly Pair[];
}
export interface ArgInstruction extends Written {
  readonly kind: 'ARG';
  /** `value` is the default, and of a resolved instruction what the argument is; undefined = declared and not set. */
  readonly arguments: readonly { readonly name: string; readonly value: string | undefined }[];
}
export interface WorkdirInstruction extends Written {
  readonly kind: 'WORKDIR';
  readonly path: string;
}
export interface UserInstruction extends Written {
  readonly kind: 'USER';
  readonly user: string;
}
export interface VolumeInstruction extends Written {
  readonly kind: 'VOLUME';
  readonly paths: readonly string[];
}
export interface ExposeInstruction extends Written {
  readonly kind: 'EXPOSE';
  readonly ports: readonly string[];
}
export interface CmdInstruction extends Written {
  readonly kind: 'CMD';
  readonly command: CommandLine;
}
export interface EntrypointInstruction extends Written {
  readonly kind: 'ENTRYPOINT';
  readonly command: CommandLine;
}
export interface MaintainerInstruction extends Written {
  readonly kind: 'MAINTAINER';
  readonly name: string;
}
export interface StopsignalInstruction extends Written {
  readonly kind: 'STOPSIGNAL';
  readonly signal: string;
}
export interface HealthcheckInstruction extends Written {
  readonly kind: 'HEALTHCHECK';
  /** As in an image config: durations in nanoseconds. */
  readonly healthcheck: NonNullable<ImageRunConfig['Healthcheck']>;
}
export interface ShellInstruction extends Written {
  readonly kind: 'SHELL';
  readonly words: readonly string[];
}
export interface OnbuildInstruction extends Written {
  readonly kind: 'ONBUILD';
  /** As it goes to the image's config: a Dockerfile of one instruction. */
  readonly expression: string;
  readonly trigger: Instruction;
}

export type Instruction =
  | FromInstruction
  | RunInstruction
  | CopyInstruction
  | AddInstruction
  | EnvInstruction
  | LabelInstruction
  | ArgInstruction
  | WorkdirInstruction
  | UserInstruction
  | VolumeInstruction
  | ExposeInstruction
  | CmdInstruction
  | EntrypointInstruction
  | MaintainerInstruction
  | StopsignalInstruction
  | HealthcheckInstruction
  | ShellInstruction
  | OnbuildInstruction;
export type InstructionKind = Instruction['kind'];
