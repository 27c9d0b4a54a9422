// Package shell is the body of `attune cli`: memcache commands typed by a
// person, read from a script, or given as one command line.
//
// # Parts
//
//   - commands.go is one table: a command's name, arguments, help and function.
//   - words.go tells words apart: quotes, escapes.
//   - shell.go runs a command and tells how it went: a value, a "no", an error,
//     an exit code.
//   - admin.go finds the HTTP side of the controller, for explain.go, watch.go and
//     trace.go; operate.go hands the commands of an operator to whoever has them.
//   - interactive.go is what a terminal needs besides: line editing, history,
//     Ctrl-C.
//
// # One command
//
// `set greeting "hello, world" --ttl 60` is split into words, looked up in the
// table, its options are told from its arguments, and store hands an item to
// [client.Client]. STORED goes to standard output. A no (NOT_STORED) or an error
// goes to standard error, so that what a script captures is only what it asked
// for, and becomes the exit code.
//
// Classic commands go through the same gomemcache API that programs use. Meta
// commands, stats and version, which it does not have, go through
// [client.Client.Raw].
package shell
