// Package rawio reads and writes non-blocking sockets without telling Go's scheduler.
//
// Around a system call package net tells it that the goroutine may block, so that
// another may have the processor. On a non-blocking socket it never does. And who tells
// wakes the runtime's monitor, if the process had nothing to do before; that then looks
// every 20 us what has become of the call. A controller that hears from its peers some
// thousand times a second, and has nothing to do in between, spends a sixth of its CPU
// on that.
//
// The monitor also takes the processor from a goroutine that does not give it up. Timers
// wake it for that, and a controller's never lie further than a tick ahead.
package rawio
