package main

import (
	"encoding/xml"
	"fmt"
	"net/http"
	"strings"
)

// apiVersions are those that a vCenter 7.0 update 3 lists in vimServiceVersions.xml, newest first.
var apiVersions = []string{
	"8.0.2.0", "8.0.1.0", "8.0.0.1", "7.0.3.0", "7.0.2.0", "7.0.1.1", "7.0.1.0", "7.0.0.2", "7.0", "6.9.1",
	"6.8.7", "6.7.3", "6.7.2", "6.7.1", "6.7", "6.5", "6.0", "5.5", "5.1", "5.0", "4.1", "4.0", "2.5u2", "2.5", "2.0",
}

// versionsUpTo are the versions a server of that one has: itself and what came before it.
func versionsUpTo(newest string) []string {
	for i, version := range apiVersions {
		if version == newest {
			return apiVersions[i:]
		}
	}
	return []string{newest}
}

// productVersion is the product's of an API version: three numbers.
func productVersion(api string) string {
	numbers := strings.Split(api, ".")
	for len(numbers) < 3 {
		numbers = append(numbers, "0")
	}
	return strings.Join(numbers[:3], ".")
}

func serveVersions(w http.ResponseWriter, versions []string) {
	w.Header().Set("Content-Type", "text/xml")
	fmt.Fprintf(w, "%s<namespaces version=\"1.0\">\n <namespace>\n  <name>urn:vim25</name>\n  <version>%s</version>\n",
		xml.Header, versions[0])
	if len(versions) > 1 {
		fmt.Fprintln(w, "  <priorVersions>")
		for _, version := range versions[1:] {
			fmt.Fprintf(w, "   <version>%s</version>\n", version)
		}
		fmt.Fprintln(w, "  </priorVersions>")
	}
	fmt.Fprint(w, " </namespace>\n</namespaces>\n")
}

// checkAction says why a SOAPAction is refused, "" when it is not. vSphere 7 refuses an empty one,
// and versions that it does not list.
func checkAction(action string, versions []string) string {
	uri := strings.Trim(action, "\" ")
	version := strings.TrimPrefix(uri, "urn:vim25/")
	if uri == "" || version == uri {
		return fmt.Sprintf("Unsupported namespace %q in SOAPAction", uri)
	}
	for _, known := range versions {
		if known == version {
			return ""
		}
	}
	return fmt.Sprintf("Unsupported version URI %q", uri)
}
