// A module of an Android app: include(":edgetok") with this folder as its projectDir.
plugins {
    id("com.android.library")
    kotlin("android")
}

android {
    namespace = "edgetok"
    compileSdk = 35
    defaultConfig {
        minSdk = 26
        ndk { abiFilters += "arm64-v8a" }
        consumerProguardFiles("consumer-rules.pro")
    }
    externalNativeBuild { cmake { path = file("src/main/cpp/CMakeLists.txt") } }
}
