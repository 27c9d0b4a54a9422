package controller

import (
	"fmt"
	"syscall"
)

// rusage is the CPU time of this process, in memcached's seconds.microseconds.
func rusage() (user, system string) {
	var created, exited, kernel, spent syscall.Filetime
	self, err := syscall.GetCurrentProcess()
	if err == nil {
		err = syscall.GetProcessTimes(self, &created, &exited, &kernel, &spent)
	}
	if err != nil {
		return "0.000000", "0.000000"
	}
	form := func(t syscall.Filetime) string { // in units of 100 ns
		us := (uint64(t.HighDateTime)<<32 | uint64(t.LowDateTime)) / 10
		return fmt.Sprintf("%d.%06d", us/1e6, us%1e6)
	}
	return form(spent), form(kernel)
}
