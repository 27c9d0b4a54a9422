// Package otlp sends what was traced to an OpenTelemetry collector: as OTLP over HTTP,
// in its JSON form, which every collector takes.
//
//	export.go    a bounded queue, and one goroutine that sends it in batches
//	encode.go    traces as spans
//
// One trace: whoever has ended it calls [Exporter.Add], which never waits → after a second
// at most, or when there are enough, the goroutine encodes those that have come and posts
// them → if the collector is away they are tried again some times, while others gather
// behind them, and what there is no room for is dropped and counted.
package otlp
