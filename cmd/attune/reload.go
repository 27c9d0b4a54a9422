package main

import (
	"slices"

	"go.uber.org/zap"

	"github.com/attunekv/attune/controller"
)

// reloadable is the settings that SIGHUP changes while the controller serves. All
// others take a restart.
var reloadable = []string{"backend", "log-level"}

// reload reads the settings again and has node take over what it can. It returns
// those in use from now on: on error those of before, all of them.
func reload(node *controller.Node, inUse settings, read func() (settings, error)) settings {
	log := inUse.Log
	next, err := read()
	if err != nil {
		log.Error("the settings were not reloaded; those of before stay in use", zap.Error(err))
		return inUse
	}
	var changed, restart []string
	values := make(map[string]string)
	for _, st := range allSettings {
		before, now := inUse.values[st.key], next.values[st.key]
		values[st.key] = before
		switch {
		case before == now:
		case slices.Contains(reloadable, st.key):
			values[st.key] = now
			changed = append(changed, st.key+" = "+now)
		default:
			restart = append(restart, st.key+" = "+now)
		}
	}
	if next.Backend != inUse.Backend {
		if err := node.Reconfigure(next.Backend); err != nil {
			log.Error("the settings were not reloaded; those of before stay in use", zap.Error(err))
			return inUse
		}
		inUse.Backend = next.Backend
	}
	if next.logLevel != inUse.logLevel { // else what /loglevel was told stays
		inUse.logLevel = next.logLevel
		inUse.LogLevel.SetLevel(next.logLevel)
	}
	inUse.values = values
	if len(changed)+len(restart) == 0 {
		log.Info("settings reloaded; none has changed (flags and the environment override the file)")
		return inUse
	}
	log.Info("settings reloaded", zap.Strings("changed", changed))
	if len(restart) > 0 {
		log.Warn("settings that take a restart have changed; those of before stay in use until then", zap.Strings("settings", restart))
	}
	return inUse
}
