//go:build unix

package controller

import (
	"fmt"
	"syscall"
)

// rusage is the CPU time of this process, in memcached's seconds.microseconds.
func rusage() (user, system string) {
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		return "0.000000", "0.000000"
	}
	return fmt.Sprintf("%d.%06d", ru.Utime.Sec, ru.Utime.Usec), fmt.Sprintf("%d.%06d", ru.Stime.Sec, ru.Stime.Usec)
}
