// Package version holds what the build says of itself.
package version

import "runtime/debug"

// Version is set by the linker; a build without it answers with what Go noted of the module.
var Version = ""

// String is the version to print.
func String() string {
	if Version != "" {
		return Version
	}
	if bi, ok := debug.ReadBuildInfo(); ok && bi.Main.Version != "" && bi.Main.Version != "(devel)" {
		return bi.Main.Version
	}
	return "devel"
}
