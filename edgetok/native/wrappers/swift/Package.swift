// swift-tools-version:5.7
import PackageDescription

// CEdgetok.xcframework holds the library and edgetok.h for each system; `edgetok export` writes it.
let package = Package(
    name: "Edgetok",
    platforms: [.iOS(.v14), .macOS(.v11)],
    products: [.library(name: "Edgetok", targets: ["Edgetok"])],
    targets: [
        .binaryTarget(name: "CEdgetok", path: "CEdgetok.xcframework"),
        .target(name: "Edgetok", dependencies: ["CEdgetok"]),
        .executableTarget(name: "greedy", dependencies: ["Edgetok"]),
    ]
)
