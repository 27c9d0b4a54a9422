package bench

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"
)

// serverCPU returns the CPU time, user and system, that a process has used.
func serverCPU(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
	}
	// The second field is the name, in parentheses, and may hold anything. Of
	// those after it, utime and stime are the 12th and 13th.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("CPU time of process %d: cannot read %q", pid, b)
	}
	user, err1 := strconv.ParseInt(string(fields[11]), 10, 64)
	system, err2 := strconv.ParseInt(string(fields[12]), 10, 64)
	if err1 != nil || err2 != nil {
		return 0, fmt.Errorf("CPU time of process %d: cannot read %q", pid, b)
	}
	// In hundredths of a second: the unit of /proc whatever the kernel ticks at.
	return time.Duration(user+system) * (time.Second / 100), nil
}
