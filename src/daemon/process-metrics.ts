/** What metrics tell of the process itself, under the names that all exporters give it. */
import type { Counter, Gauge } from 'prom-client'
import type { MetricMaker } from './disk-metrics.ts'

export class ProcessMetrics {
  private readonly cpu: Counter
  private readonly memory: Gauge
  private cpuSeconds = 0

  constructor({ gauge, counter }: MetricMaker) {
    this.cpu = counter('process_cpu_seconds_total', 'CPU time of the process.')
    this.memory = gauge('process_resident_memory_bytes', 'Memory of the process.')
    gauge('process_start_time_seconds', 'When the process was started, since 1970.').set(performance.timeOrigin / 1000)
  }

  collect(): void {
    const { user, system } = process.cpuUsage()
    const seconds = (user + system) / 1e6
    this.cpu.inc(seconds - this.cpuSeconds)
    this.cpuSeconds = seconds
    this.memory.set(process.memoryUsage.rss())
  }
}
