package shell

import "fmt"

// operate runs an operator's command: one of attune's own, for the controller that this
// shell talks to.
func (sh *shell) operate(in input) error {
	if sh.operator == nil {
		return usageError(fmt.Sprintf("there is no %s in this program", in.verb))
	}
	if err := sh.out.Flush(); err != nil { // it writes to what is behind
		return err
	}
	args := []string{in.verb}
	for _, w := range in.args {
		args = append(args, w.text)
	}
	return sh.operator(sh.ctx, Target{
		Server: sh.client.Controller(),
		Admin: func() (string, error) {
			at, err := sh.admin()
			return at.Addr, err
		},
	}, args, sh.plain, sh.err)
}
