package testbed

import (
	"fmt"
	"net"
	"testing"
)

func TestFreePortsAreGivenOnce(t *testing.T) {
	seen := make(map[int]bool)
	for i := range 60 {
		n := 1 + i%12
		first, err := FreePorts("127.0.0.1", n)
		if err != nil {
			t.Fatal(err)
		}
		for port := first; port < first+n; port++ {
			if seen[port] {
				t.Fatalf("port %d a second time", port)
			}
			seen[port] = true
			if err := unused(fmt.Sprintf("127.0.0.1:%d", port)); err != nil {
				t.Error(err)
			}
		}
		// A row is not one that goes around what somebody listens on.
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", first+n+1))
		if err == nil {
			defer l.Close()
			seen[first+n+1] = true
		}
	}
	for _, guard := range blocks.guards {
		if seen[guard.Addr().(*net.TCPAddr).Port] {
			t.Errorf("%s keeps others out, and was given away", guard.Addr())
		}
	}
}
