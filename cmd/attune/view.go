package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/attunekv/attune/client/admin"
)

// view is what a controller tells of itself and of the others, as far as a command looks
// at it.
type view struct {
	Name, Level string
	Health      string // why it does not serve; empty: it does
	Connections int64
	Members     []viewed // itself included; none if it is alone
	Ordered     *struct{ Role, Leader string }
}

// viewed is a controller as another one sees it.
type viewed struct{ Name, State, Role, Listen, Admin string }

// look asks a controller how things are.
func look(ctx context.Context, at *admin.Client) (*view, error) {
	v := new(view)
	_, err := at.GetJSON(ctx, "/api/node", nil, v)
	return v, err
}

// leader is who leads, "" if nobody is known to, or nobody does at that level.
func (v *view) leader() string {
	if v.Ordered == nil {
		return ""
	}
	return v.Ordered.Leader
}

func (v *view) member(name string) *viewed {
	i := slices.IndexFunc(v.Members, func(m viewed) bool { return m.Name == name })
	if i < 0 {
		return nil
	}
	return &v.Members[i]
}

// turnTo has at ask the controller called name, given that it has asked the one of v.
func (v *view) turnTo(at *admin.Client, name string) error {
	if name == v.Name {
		return nil
	}
	m := v.member(name)
	switch {
	case m == nil:
		return fmt.Errorf("at %s there is %s, and it knows no %s: attune show lists those there are", at.Addr, v.Name, name)
	case m.Admin == "" || m.Admin == "-":
		return fmt.Errorf("%s has no admin address: start it with one (see admin)", name)
	}
	addr, err := admin.Reach(m.Admin, m.Listen, name)
	if err == nil {
		at.Addr = addr
	}
	return err
}
