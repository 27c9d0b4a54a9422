package attunetest

import (
	"os/exec"
	"syscall"
)

// dieTogether has cmd killed when the thread that starts it ends.
func dieTogether(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
