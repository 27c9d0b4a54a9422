package testbed

import (
	"os/exec"
	"syscall"
)

// setApart has cmd run in a process group of its own, and be killed when the thread
// that starts it ends.
func setApart(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
