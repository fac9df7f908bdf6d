// Types of what tests of handlers use: `import { handlerTest } from 'flowmonkey/testing'`.

export interface TestOptions {
  readonly config?: Readonly<Record<string, unknown>>;
  readonly context?: Readonly<Record<string, unknown>>;
  readonly secrets?: Readonly<Record<string, string>>;
  /** What the pauses of a stateful handler end with, the last one again and again. */
  readonly resumes?: readonly unknown[];
  /** The handler's folder; else the nearest one above the working directory. */
  readonly folder?: string;
  /** Whether the declared test values are given where nothing else is; true unless said. */
  readonly testValues?: boolean;
}

export interface Tested<O = any> {
  /** `error`: it crashed, ran out of a limit or broke the protocol. */
  readonly outcome: 'success' | 'failure' | 'wait' | 'error';
  readonly output?: O;
  readonly error?: {
    readonly code: string;
    readonly message: string;
    readonly retryable: boolean;
    readonly details: any;
  };
  readonly next?: string | null;
  readonly wait?: any;
  readonly updates: Readonly<Record<string, any>>;
  readonly emitted: readonly (readonly [string, any])[];
  readonly logs: readonly {
    readonly stream: 'log' | 'stdout' | 'stderr';
    readonly level: string | null;
    readonly message: string;
    readonly fields: Readonly<Record<string, any>>;
  }[];
  readonly durationMs: number;
  readonly cpuMs: number;
  readonly peakMemoryBytes: number;
  /** The system calls that the sandbox refused; `answer` is EPERM, ENOSYS or killed. Null: this
   * host does not tell. */
  readonly refusedCalls:
    | readonly { readonly call: string; readonly answer: string; readonly count: number }[]
    | null;
  /** [property, rule] of each violation, if that is how it ended. */
  readonly violations: readonly (readonly [string, string])[];
}

/** Run the handler once, in the real sandbox. `undefined` is no input. */
export function handlerTest<O = any>(input?: unknown, options?: TestOptions): Promise<Tested<O>>;
