package shell

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/attunekv/attune/client/admin"
)

// adminPatience is how long a controller may take to answer what is no stream. It may
// have to ask the others.
const adminPatience = 15 * time.Second

// patient is the running command's context, for an answer that is no stream.
func (sh *shell) patient() (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(sh.ctx, adminPatience, errors.New("the controller takes too long"))
}

// admin is the HTTP side of the controller that is talked to, at the address that was
// given or, if none was, the one that the controller says it has.
func (sh *shell) admin() (*admin.Client, error) {
	at := &admin.Client{Addr: sh.adminAddr, TokenFile: sh.tokenFile, DialContext: sh.dial}
	var err error
	if at.Addr == "" {
		at.Addr, err = sh.toldAdmin()
	}
	return at, err
}

// toldAdmin asks the controller for its admin address.
func (sh *shell) toldAdmin() (string, error) {
	var name, addr string
	err := sh.lines("stats", []word{{text: "attune"}}, func(line string) bool {
		if v, ok := strings.CutPrefix(line, "STAT name "); ok {
			name = v
		}
		if v, ok := strings.CutPrefix(line, "STAT admin "); ok {
			addr = v
		}
		return strings.HasPrefix(line, "STAT ")
	})
	switch {
	case err != nil && name == "":
		return "", fmt.Errorf("%s is asked for its admin address: %w", sh.client.Controller(), err)
	case name == "":
		return "", fmt.Errorf("%s is not a controller of attune", sh.client.Controller())
	case addr == "" || addr == "-":
		return "", fmt.Errorf("%s has no admin address: start it with one (see admin)", name)
	}
	return admin.Reach(addr, sh.client.Controller(), name)
}

// clean is text that plays no tricks on a terminal.
func clean(s string) string {
	if printable([]byte(s)) && !strings.ContainsAny(s, "\n\t") {
		return s
	}
	return fmt.Sprintf("%q", s)
}
