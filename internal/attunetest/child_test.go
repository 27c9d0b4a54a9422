//go:build unix

package attunetest

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// killedChild runs the test that calls it in a process of its own, and kills that
// when it has told where its server is.
func killedChild(t *testing.T) (addr string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	// What it cannot remove any more goes with this test's directory.
	cmd.Env = append(os.Environ(), "ATTUNETEST_CHILD=1", "TMPDIR="+t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // killed
	if _, scan := fmt.Sscanf(line, "at %s", &addr); scan != nil {
		t.Fatalf("it says %q, %v", line, err)
	}
	return addr
}
